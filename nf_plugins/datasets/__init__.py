"""The embedded data set."""

from .digits import Digits

__all__ = ['Digits']
