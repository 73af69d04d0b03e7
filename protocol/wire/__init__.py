"""What travels on a connection: frames, the connection's state machine, messages."""
