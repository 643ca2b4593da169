"""`python -m vopd` is the `vopd` command; launchers of several processes need a module."""

from vopd.cli import main
from vopd.run.exit_codes import leave

leave(main())
