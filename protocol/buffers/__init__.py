"""Memory and file helpers that make system calls: reused page-aligned buffers, direct I/O, and no
core dumps."""
