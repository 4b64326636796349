"""Import path of version 0.1.0 for the parts of the normalizer-free networks."""

from .conv_builder import ConvBuilder
from .nf_arch import MOST_BLOCKS, NFArch, override_arch, resolve_arch
from .nf_backbone import NFBackbone
from .nf_block import NFBlock, make_attention, scaled
from .nf_stem import STEMS, NFStem

__all__ = [
    'MOST_BLOCKS',
    'STEMS',
    'ConvBuilder',
    'NFArch',
    'NFBackbone',
    'NFBlock',
    'NFStem',
    'make_attention',
    'override_arch',
    'resolve_arch',
    'scaled',
]
