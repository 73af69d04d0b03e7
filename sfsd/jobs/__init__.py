"""Jobs that the daemon runs once a day."""
