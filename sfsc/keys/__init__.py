"""Private keys on this machine."""
