"""The handshake with a broker: HELLO → WELCOME, and why it fails (docs/protocol.md §6)."""


def unknown_host(url: str) -> str:
    return ""
