"""Argument checks and atomic file writes. This package imports no mm library."""
