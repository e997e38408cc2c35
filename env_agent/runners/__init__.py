"""Runners: a session uses its environment only through a runner.

So far there is one, `Runner`. Another one needs the same attributes.
"""
