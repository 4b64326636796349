"""Checks of arguments, and files that appear whole. It imports no mm library."""
