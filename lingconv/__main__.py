"""`python -m lingconv` is `lingconv`."""

import sys

from lingconv.cli import main

if __name__ == "__main__":
    sys.exit(main())
