"""``python -m gadgets``: the command line, where no console script is installed."""

import sys

from gadgets.commands.main import main

sys.exit(main())
