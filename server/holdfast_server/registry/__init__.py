"""Models, releases and memberships: signed by others, checked here, never changed afterwards."""
