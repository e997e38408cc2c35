"""The demo learners, the task that trains them, and its report."""
