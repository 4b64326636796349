"""Layers: thin modules on top of :mod:`nf_plugins.functional`."""

from . import refusals  # noqa: F401  (registers its hooks)
from .activations import GammaAct, build_activation
from .conversion import Conversion, convert
from .drop_path import DropPath
from .dyt import Derf, DyT
from .eca import ECA
from .folding import fold, plain_convolution
from .pws import PWSConv2d
from .same_conv import SameConv2d
from .scaled_ws import ScaledWSConv2d
from .squeeze_excite import SqueezeExcite
from .standardized_conv import StandardizedConv2d

__all__ = [
    'ECA',
    'Conversion',
    'Derf',
    'DropPath',
    'DyT',
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
