"""A long run beside hostile peers: step times, results and memory of honest peers."""
