"""`python -m gymwire.learner_agent`: the command `gymwire`."""

import sys

from gymwire.cli import main

if __name__ == "__main__":
    sys.exit(main())
