"""The agent: a process that keeps the unlock key of one keyring in memory for a limited time."""
