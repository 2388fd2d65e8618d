"""The physics and the networks of cinestream: arrays in, arrays out, nothing known of streams or files."""

import os

# OpenMP threads that wait spin, unless told otherwise before torch is imported. On a machine that does anything else at
# the same time (a Gadgetron, another scan) they then fight for the cores: measured 8 times slower with two busy cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
