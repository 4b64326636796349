"""NFNet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nf_plugins.registry import MODELS

from .nf_arch import NFArch, resolve_arch
from .nf_backbone import NFBackbone

_F0 = NFArch(
    depths=(1, 2, 6, 3),
    widths=(256, 512, 1536, 1536),
    stem='nfnet',
    stem_channels=128,
    bottleneck_ratio=0.5,
    group_width=128,
    num_3x3=2,
    attention='se',
    se_ratio=0.5,
    downsample='avg',
    final_ratio=(2, 1),
)

ARCHS: dict[str, NFArch] = {}
for _level in range(8):
    _arch = replace(_F0, depths=tuple(depth * (_level + 1) for depth in _F0.depths))
    ARCHS[f'f{_level}'] = _arch
    ARCHS[f'f{_level}+'] = replace(_arch, widths=(384, 768, 2048, 2048), stem_channels=192)
ARCHS['f4+paper'] = replace(ARCHS['f4+'], whole_groups=False)


@MODELS.register_module()
class NFNet(NFBackbone):
    """NFNet: a normalizer-free ResNeXt, designed for accuracy per training time.

    The stem has four 3x3 convolutions. Each bottleneck has half the width of its block, two 3x3
    group convolutions with 128 channels per group, and squeeze-excite at the end. A 1x1
    convolution that doubles the channels ends the network.

    Args:
        arch: 'f0' to 'f7', 'f0+' to 'f7+' (wider), 'f4+paper' (of the size that the paper says:
            stage 1 keeps its bottleneck of 192 channels, in one group), or ``dict(base='f0',
            group_width=64, ...)`` with fields of
            :class:`~nf_plugins.models.backbones.nf_arch.NFArch` to override.
        act_cfg: Config of the activation. The official GELU is the tanh approximation.
        **kwargs: ``alpha``, ``skipinit``, ``attention``, ``drop_path_rate``, ...: see
            :class:`~nf_plugins.models.backbones.nf_backbone.NFBackbone`.

    Shape:
        - Input: ``(N, in_channels, H, W)``.
        - Output: a tuple of ``(N, C_i, H_i, W_i)``, not activated; by default the
          output of the final convolution.

    Raises:
        ValueError: The arch, a field or an option is unknown.

    Source: Brock et al. 2021b, section 4; DeepMind's ``nfnets/nfnet.py``. F7 and the F+ variants
    are in DeepMind's code; the paper trains F0 to F6 and F4+.

    Example:
        >>> import torch
        >>> arch = dict(base='f0', widths=(32, 64, 96, 128), stem_channels=16, group_width=8)
        >>> NFNet(arch).eval()(torch.randn(1, 3, 64, 64))[0].shape
        torch.Size([1, 256, 2, 2])
    """

    def __init__(
        self,
        arch: str | Mapping = 'f0',
        act_cfg: dict = dict(type='GELU', approximate='tanh'),
        **kwargs: Any,
    ) -> None:
        super().__init__(resolve_arch(ARCHS, arch), act_cfg=act_cfg, **kwargs)
