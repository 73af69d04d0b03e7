"""Signed records: file records, identity chains, signatures, invitations."""
