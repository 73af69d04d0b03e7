"""Enrol, devices, rotation and recovery of an account."""
