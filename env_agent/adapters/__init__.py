"""Adapters: environments that are not a gymnasium.Env, made one."""
