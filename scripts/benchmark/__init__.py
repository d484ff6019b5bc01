"""`scripts/bench`: speed, each as a ratio to a named peer or limit that was measured in the same run."""
