"""Measurements of the package and of other libraries; run from the checkout, with ``-m``."""
