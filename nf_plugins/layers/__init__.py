"""Thin modules on top of :mod:`nf_plugins.functional`."""

from .activations import GammaAct, build_activation
from .conversion import Conversion, convert
from .drop_path import DropPath
from .eca import ECA
from .folding import fold, plain_convolution
from .same_conv import SameConv2d
from .squeeze_excite import SqueezeExcite
from .standardized_conv import PWSConv2d, ScaledWSConv2d, StandardizedConv2d

__all__ = [
    'ECA',
    'Conversion',
    'DropPath',
    'GammaAct',
    'PWSConv2d',
    'SameConv2d',
    'ScaledWSConv2d',
    'SqueezeExcite',
    'StandardizedConv2d',
    'build_activation',
    'convert',
    'fold',
    'plain_convolution',
]
