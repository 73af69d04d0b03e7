"""This account in the audit log."""
