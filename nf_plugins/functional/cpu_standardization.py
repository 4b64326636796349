"""Import path of version 0.1.0 for the C kernels."""

from .standardization.kernels_c import backward, forward, supports

__all__ = ['backward', 'forward', 'supports']
