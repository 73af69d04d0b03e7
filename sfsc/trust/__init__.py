"""What was verified, and what is remembered against rollback."""
