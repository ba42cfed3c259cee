"""The long run: `python -m tests.faults` throws faults at several workers for as long as it is told to."""

import sys

from tests.faults.campaign import main

if __name__ == "__main__":
    sys.exit(main())
