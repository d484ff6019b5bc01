"""Reports of devices: verified, counted once, and in the tables before they are acknowledged."""
