"""`python -m foveal` is the `foveal` command, where no script is installed or another Python's comes first."""

import sys

from foveal.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
