"""The edge of the core: stores what it decides, gathers what it judges by, and carries out its commands."""
