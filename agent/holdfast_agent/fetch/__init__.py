"""One target, from its digest to verified bytes on disk, in a process of its own that then exits."""
