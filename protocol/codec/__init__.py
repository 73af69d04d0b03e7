"""Encodings: msgpack, base64, typed values, names, Merkle trees, terminal text, and all errors."""
