"""Runners: where an environment runs.

A session uses its environment only through a runner. The one runner so far, `InLoopRunner`, runs
the environment in the thread of the serving loop; its attributes are what a runner must have.
"""
