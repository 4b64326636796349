"""Small data sets that need no download, and a sampler."""

from .digits import Digits
from .samplers import MultiplicitySampler
from .shapes import Shapes

__all__ = ['Digits', 'MultiplicitySampler', 'Shapes']
