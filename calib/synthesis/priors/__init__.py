"""One loss a file; each takes what an instrumented forward pass saw and returns a scalar."""
