"""Rules for requests: users, records, read access, retention of bundles, and refusals."""
