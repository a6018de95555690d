"""``python -m hyena``: the command ``hyena``."""

import sys

from hyena.command import main

if __name__ == "__main__":
    sys.exit(main())
