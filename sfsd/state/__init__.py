"""In-memory views that follow the log."""
