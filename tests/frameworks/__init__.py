"""gymwire with other frameworks; each file needs the one that it is named for."""
