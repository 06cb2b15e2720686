"""One file a target: what is legal there, and the passes that make a canonical graph so."""
