"""Import path of version 0.1.0 for the Triton kernels."""

from .standardization.kernels_triton import LONGEST_ROW, backward, forward, supports

__all__ = ['LONGEST_ROW', 'backward', 'forward', 'supports']
