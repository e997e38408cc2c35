"""The environments that a learner sees."""
