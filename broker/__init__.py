"""The broker: lists the offered environments, opens sessions and relays their frames unread."""
