"""``python -m rio``: see `rio.cli.parser`."""

import sys

from rio.cli.parser import main

if __name__ == "__main__":
    sys.exit(main())
