"""The learner agent's side of the wire: connection, requests, sessions."""
