"""The env agent: it owns Gymnasium environments and serves them under an address."""

import gymnasium

gymnasium.register(
    id="gymwire/PriceMarket-v0",
    entry_point="gymwire.env_agent.price_market:PriceMarket",
    # A trading day. The market itself never terminates, so the episode is truncated.
    max_episode_steps=200,
)
