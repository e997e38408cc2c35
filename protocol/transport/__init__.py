"""How frames get from one process to another: ZeroMQ, Unix sockets, and the link to a broker."""
