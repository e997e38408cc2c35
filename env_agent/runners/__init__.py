"""The runner, through which a session uses its environment."""
