"""What the server remembers: tables, transactions, the outbox of assignments."""
