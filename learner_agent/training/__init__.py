"""The demo learners and their training task."""
