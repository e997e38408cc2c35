"""`python -m gymwire`: the command `gymwire`."""

import sys

from gymwire.cli import main

if __name__ == "__main__":
    sys.exit(main())
