"""How a worker shuts itself in before a stranger's model first computes. The README of `holdfast_worker` says what from."""
