"""One login that survives lost connections."""
