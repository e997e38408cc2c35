"""The agent that steps and trains on environments that env agents own.

In the terms of IMPALA and SEED RL it is the actor.
"""
