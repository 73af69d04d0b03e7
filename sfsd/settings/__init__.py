"""The settings of a root: what they are, how they are written, and how the file is read."""
