"""`python -m gptrs`: the command line."""

import sys

from gptrs.cli import main

sys.exit(main())
