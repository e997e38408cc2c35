"""`python -m gymwire.broker`: the command `gymwire broker`."""

import sys

from gymwire.cli import main

if __name__ == "__main__":
    sys.exit(main(["broker", *sys.argv[1:]]))
