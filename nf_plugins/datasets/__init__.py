"""The embedded data sets."""

from .digits import Digits
from .shapes import Shapes

__all__ = ['Digits', 'Shapes']
