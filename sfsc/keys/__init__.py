"""Private keys of one account on this machine."""
