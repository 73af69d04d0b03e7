"""The audit log's formats: lines, checkpoints, inclusion proofs."""
