"""Memory and file helpers that make system calls: huge pages of reused memory, large-file flags."""
