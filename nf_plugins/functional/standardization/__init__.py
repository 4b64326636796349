"""Weight standardization: the formulas, and a convolution with a standardized weight."""

from .conv import standardized_conv2d, standardized_weight
from .formula import (
    EPS,
    Standardization,
    parametric_standardize_weight,
    scaled_standardize_weight,
    standardize,
)

__all__ = [
    'EPS',
    'Standardization',
    'parametric_standardize_weight',
    'scaled_standardize_weight',
    'standardize',
    'standardized_conv2d',
    'standardized_weight',
]
