"""The agent that owns Gymnasium environments and offers them under an address."""
