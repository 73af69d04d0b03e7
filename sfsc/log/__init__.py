"""The account's entries in the server's audit log: read, verified and exported."""
