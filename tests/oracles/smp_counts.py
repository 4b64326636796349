"""Residual sums of the blocks of segmentation_models_pytorch (0.5), read from their sources.

Its encoders have blocks of torchvision and timm as well. The sums of decoders are not among
them: those of pyramids and gates add what two paths have computed.
"""

from __future__ import annotations

from . import timm_counts, torchvision_counts
from .executed import Entry, flag

BLOCKS: dict[str, Entry] = {
    **timm_counts.BLOCKS,
    **torchvision_counts.BLOCKS,
    '_dpn.DualPathBlock': 1,
    '_efficientnet.MBConvBlock': flag('_has_drop_connect'),
    '_inceptionresnetv2.Block17': 1,
    '_inceptionresnetv2.Block35': 1,
    '_inceptionresnetv2.Block8': 1,
    '_senet.Bottleneck': 1,
    '_senet.SEBottleneck': 1,
    '_senet.SEResNetBottleneck': 1,
    '_senet.SEResNeXtBottleneck': 1,
    '_xception.Block': 1,
    'decoder.PABBlock': 1,  # attention in the decoder of MAnet
    'decoder.ResidualConvBlock': 1,  # of DPT
    'mix_transformer.Block': 2,
    'vision_transformer.Block': 2,
}
