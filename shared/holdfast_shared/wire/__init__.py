"""Documents as they travel and lie on disk: one file each, one golden file per type and version under tests/wire/.

Every document carries its `type` with a version. Unknown fields are ignored unless the document names them in `critical`.
Times are integer microseconds since 1970-01-01T00:00:00Z; shares are integers of 10 000.
"""
