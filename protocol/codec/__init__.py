"""Encodings without I/O: msgpack, base64, values, names, Merkle trees, terminal text, errors."""
