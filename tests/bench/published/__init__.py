"""The networks as their authors run them, with our weights, to compare times."""
