"""Remote environments in an event loop: the blocking code, in calls that an event loop suspends."""
