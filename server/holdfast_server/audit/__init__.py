"""What the server decided, why, and on what evidence: kept for ever."""
