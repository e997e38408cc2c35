"""Gymnasium environments that forward every call to an env agent."""
