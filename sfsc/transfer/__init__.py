"""Upload and download of file contents."""
