"""Normalizer-free RegNet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nf_plugins.registry import MODELS

from .nf_arch import NFArch, resolve_arch
from .nf_backbone import NFBackbone

_B0 = NFArch(
    depths=(1, 3, 6, 6),
    widths=(48, 104, 208, 440),
    stem='regnet',
    strides=(2, 2, 2, 2),
    width_mult=0.75,
    bottleneck_ratio=2.25,
    group_width=8,
    regnet=True,
    attention='se',
    se_ratio=0.5,
    downsample='avg',
    final_ratio=(1280, 440),
)


def _variant(depths: tuple[int, ...], widths: tuple[int, ...]) -> NFArch:
    return replace(_B0, depths=depths, widths=widths)


ARCHS: dict[str, NFArch] = {
    'b0': _B0,
    'b1': _variant((2, 4, 7, 7), (48, 104, 208, 440)),
    'b2': _variant((2, 4, 8, 8), (56, 112, 232, 488)),
    'b3': _variant((2, 5, 9, 9), (56, 128, 248, 528)),
    'b4': _variant((2, 6, 11, 11), (64, 144, 288, 616)),
    'b5': _variant((3, 7, 14, 14), (80, 168, 336, 704)),
    'b6': _variant((3, 8, 16, 16), (88, 184, 376, 792)),
    'b7': _variant((4, 10, 19, 19), (96, 208, 416, 880)),
    'b8': _variant((4, 11, 22, 22), (104, 232, 456, 968)),
}


@MODELS.register_module()
class NFRegNet(NFBackbone):
    """NF-RegNet: an EfficientNet-like RegNet without normalisation.

    The bottlenecks expand their input 2.25 times, except in the first block. They have group
    convolutions of 8 channels and squeeze-excite. A 1x1 convolution ends the network.

    Args:
        arch: 'b0' to 'b8', or ``dict(base='b0', width_mult=1.0, ...)`` with fields of
            :class:`~nf_plugins.models.backbones.nf_arch.NFArch` to override.
        act_cfg: Config of the activation.
        **kwargs: ``alpha``, ``skipinit``, ``attention``, ``drop_path_rate``, ...: see
            :class:`~nf_plugins.models.backbones.nf_backbone.NFBackbone`.

    Shape:
        - Input: ``(N, in_channels, H, W)``.
        - Output: a tuple of ``(N, C_i, H_i, W_i)``, not activated; by default the
          output of the final convolution.

    Raises:
        ValueError: The arch, a field or an option is unknown.

    Source: Brock et al. 2021a, section 5.2; DeepMind's ``nfnets/nf_regnet.py``. B6 to
    B8 are in DeepMind's code but not in the paper.

    Example:
        >>> import torch
        >>> NFRegNet('b0').eval()(torch.randn(1, 3, 64, 64))[0].shape
        torch.Size([1, 960, 2, 2])
    """

    def __init__(
        self,
        arch: str | Mapping = 'b0',
        act_cfg: dict = dict(type='SiLU'),
        **kwargs: Any,
    ) -> None:
        super().__init__(resolve_arch(ARCHS, arch), act_cfg=act_cfg, **kwargs)
