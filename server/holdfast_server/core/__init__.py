"""Decisions of the server as functions over values: no clock, no database, no network. `now` is an argument."""
