"""Measured comparisons and the reference model: scripts that run from a checkout and are not installed."""
