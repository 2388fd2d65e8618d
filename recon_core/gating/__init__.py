"""Heartbeats: judging them, and finding them in the data."""
