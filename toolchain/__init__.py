"""Lower a calibrated model to integer graphs, write the bundle, and look inside it."""
