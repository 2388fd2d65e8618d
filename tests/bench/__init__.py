"""Measurements; every file of results has the command that made it."""

import recon_core  # noqa: F401 - before torch, so that its threads wait as those of the command line do
