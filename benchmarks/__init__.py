"""Measurements of this package and of other libraries. Run them in the checkout, with ``-m``."""
