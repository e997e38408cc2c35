"""The broker: knows who offers what, introduces the two, and relays for them unread."""
