"""Enrolment, devices, key rotation and recovery of an account."""
