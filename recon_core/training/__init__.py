"""Training: series to learn from, what a scanner would measure of them, losses, and one trainer for all networks."""
