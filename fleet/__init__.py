"""Fleets of env agents, placed by this machine, Ray or SLURM (`gymwire fleet`)."""
