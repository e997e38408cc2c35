"""Start the program in the other interpreter."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from typing import Any

PACKAGE = "gymwire_child"


def load() -> Any:
    """Load the folder of this file as a package; return its module `program`.

    The folder leaves `sys.path`, where its modules would hide those of the environment.
    """
    folder = __file__.rpartition("/")[0]
    sys.path[:] = [path for path in sys.path if path not in ("", folder)]
    # Python shows DeprecationWarnings only about the calls of `__main__`. Show ours, too.
    if not sys.warnoptions:
        warnings.filterwarnings("default", "", DeprecationWarning, rf"{PACKAGE}\.")
    spec: Any = importlib.util.spec_from_file_location(PACKAGE, folder + "/__init__.py")
    package = sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
    # Uninstalling gymwire would leave the compiled files of other interpreters behind.
    writes_files, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    spec.loader.exec_module(package)
    program = importlib.import_module(PACKAGE + ".program")
    sys.dont_write_bytecode = writes_files
    return program


if __name__ == "__main__":
    load().main(*map(int, sys.argv[1:]))
