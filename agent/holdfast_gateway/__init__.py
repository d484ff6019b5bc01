"""The data plane of a device: HTTP in, workers behind it, and counts of what became of every request."""
