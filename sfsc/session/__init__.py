"""A login on the server that survives lost connections, and changes of files over it."""
