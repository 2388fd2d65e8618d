"""Simulated scans as a scanner would send them, with the truth behind them."""

from gadgets.simulation.plan import ScanPlan
from gadgets.simulation.scan import Scan, Truth, noise_path, simulate, write_simulation

__all__ = ["Scan", "ScanPlan", "Truth", "noise_path", "simulate", "write_simulation"]
