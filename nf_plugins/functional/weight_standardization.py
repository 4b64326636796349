"""Import path of version 0.1.0 for the formulas."""

from .standardization import EPS, parametric_standardize_weight, scaled_standardize_weight

__all__ = ['EPS', 'parametric_standardize_weight', 'scaled_standardize_weight']
