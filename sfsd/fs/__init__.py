"""System calls: files, durability, descriptors, direct I/O."""
