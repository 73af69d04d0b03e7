"""The wire format: frames, messages, and the state machine of a connection."""
