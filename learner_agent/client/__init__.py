"""Everything of the learner agent that talks: connection, requests, sessions."""
