"""Bytes on disk and the one write path."""
