"""Adapters: proxies in the form that other libraries expect. Each needs an extra of its own."""
