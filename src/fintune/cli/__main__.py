"""``python -m fintune.cli`` is the ``fintune`` command."""

import sys

from fintune.cli import main

if __name__ == "__main__":
    sys.exit(main())
