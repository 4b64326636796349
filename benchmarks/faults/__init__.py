"""Faults that are seeded into healthy networks, and what the verdicts say of them."""
