"""Costs of networks with and without norms, and measuring of time and memory."""
