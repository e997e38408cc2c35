"""The names of the engines. This module starts quickly, for `gymwire --help`."""

# name → module, class, and the extra that it needs
ENGINES = {
    "local": ("gymwire.fleet.local", "LocalEngine", ""),
    "ray": ("gymwire.fleet.ray_engine", "RayEngine", "ray"),
    "slurm": ("gymwire.fleet.slurm", "SlurmEngine", "slurm"),
}
