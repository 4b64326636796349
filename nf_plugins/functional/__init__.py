"""Pure functions on tensors. This package imports torch and no mm library."""

from .agc import adaptive_clip_grad_, unitwise_norm
from .channel_statistics import ChannelStatistics, channel_statistics
from .gamma import GAMMA, activation_gamma, activation_name, knows_activation
from .padding import fixed_same_padding, pad_same, same_padding
from .standardization import (
    Standardization,
    parametric_standardize_weight,
    scaled_standardize_weight,
)

__all__ = [
    'GAMMA',
    'ChannelStatistics',
    'Standardization',
    'activation_gamma',
    'activation_name',
    'adaptive_clip_grad_',
    'channel_statistics',
    'fixed_same_padding',
    'knows_activation',
    'pad_same',
    'parametric_standardize_weight',
    'same_padding',
    'scaled_standardize_weight',
    'unitwise_norm',
]
