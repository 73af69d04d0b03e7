"""Verification of the server's answers, and the state remembered against rollback."""
