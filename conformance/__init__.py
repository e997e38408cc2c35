"""The conformance suite: what docs/protocol.md demands of an env agent in any language."""
