"""What all tests share."""

import recon_core  # noqa: F401 - before torch, for the settings that it makes for it
