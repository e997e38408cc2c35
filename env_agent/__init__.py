"""The agent that owns Gymnasium environments and offers them under an address."""

import gymnasium

gymnasium.register(
    id="gymwire/PriceMarket-v0",
    entry_point="gymwire.env_agent.price_market:PriceMarket",
    # A trading day. The market itself has no end: what ends is truncated, never terminated.
    max_episode_steps=200,
)
