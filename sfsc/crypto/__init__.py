"""Cryptographic primitives and the segment cipher."""
