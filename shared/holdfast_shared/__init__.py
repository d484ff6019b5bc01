"""What the device and the server both say: wire types, `assign`, cohorts, selectors, signing, topics, histograms.

Nothing here imports either side, and nothing but `durable` touches the disk.
"""

__version__ = "0.1.0"
