"""The gym protocol: messages, the dialogue that orders them, and their bytes on the wire."""
