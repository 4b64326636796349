"""Small data sets that need no download."""

from .digits import Digits
from .shapes import Shapes

__all__ = ['Digits', 'Shapes']
