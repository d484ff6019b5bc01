"""The server: registry, rollouts, ingest, outbox, API and page, in one process."""
