"""Import path of version 0.1.0 for the base classes of the backbones."""

from .residual_block import ResidualBlock, activate, add_shortcut, is_watched, may_overwrite
from .staged import StagedBackbone

__all__ = [
    'ResidualBlock',
    'StagedBackbone',
    'activate',
    'add_shortcut',
    'is_watched',
    'may_overwrite',
]
