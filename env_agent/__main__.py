"""`python -m gymwire.env_agent`: the command `gymwire serve`."""

import sys

from gymwire.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
