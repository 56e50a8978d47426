"""`python -m espalier` is the `espalier` command."""

import sys

from .cli import main

sys.exit(main())
