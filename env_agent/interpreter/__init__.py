"""Environments in a process with its own interpreter (`gymwire serve --python`).

`child` is the program that runs there, in any CPython or PyPy from 3.7 on. The other modules run in
the env agent: `child_factory` makes a `ChildEnv` or a `ChildVector`, an environment that passes
every call to the process.
"""
