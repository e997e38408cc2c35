"""Keys, who may connect, and signed sessions."""
