"""Images from the network itself: priors, views, targets, the optimisation loop, and methods as data."""
