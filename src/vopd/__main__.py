"""`python -m vopd` is the `vopd` command; launchers of several processes need a module."""

import sys

from vopd.cli import main

sys.exit(main())
