"""File contents up and down."""
