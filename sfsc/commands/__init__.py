"""One file a command, loaded when it is called: start-up pays for nothing else."""
