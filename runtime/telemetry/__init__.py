"""Power, clocks, temperatures and throttling, read beside a run: one file a source, each absent with a line that says
why."""
