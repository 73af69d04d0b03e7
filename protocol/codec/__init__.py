"""Encodings without I/O: msgpack, base64, typed values, names, Merkle trees, errors."""
