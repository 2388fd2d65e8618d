"""Which heartbeat, and which moment of it, a readout belongs to."""
