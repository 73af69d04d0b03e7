"""The append-only log: its file, its Merkle tree, replay, proofs and verification."""
