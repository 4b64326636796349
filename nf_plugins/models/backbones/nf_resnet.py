"""Normalizer-free ResNet, and its predecessor, which only has SkipInit gains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nf_plugins.registry import MODELS
from nf_plugins.utils.checks import check_choice, check_integer, check_integers

from .nf_arch import MOST_BLOCKS, NFArch
from .nf_backbone import NFBackbone

DEPTHS = {
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    288: (24, 24, 24, 24),
    600: (50, 50, 50, 50),
}


def resnet_depths(depth: int | Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of blocks of each stage of a bottleneck ResNet, from its depth."""
    if isinstance(depth, int):
        return DEPTHS[check_choice('depth', depth, DEPTHS)]
    return check_integers('depth', depth, 4, maximum=MOST_BLOCKS)


@MODELS.register_module()
class NFResNet(NFBackbone):
    r"""NF-ResNet: a pre-activation bottleneck ResNet without normalisation.

    .. math:: x_{l+1} = x_l + \alpha\, s\, f_l(x_l / \beta_l), \qquad
              \beta_l^2 = \mathrm{Var}[x_l] \text{ as expected}

    Args:
        depth: 26, 50, 101, 152, 200, 288, 600, or the blocks of the four stages.
        base_channels: Bottleneck width of the first stage; the official ``width=4``.
        strides: Stride of each stage.
        stem: 'imagenet' (7x7, stride 2, max-pooling), 'cifar' (3x3, stride 1) or
            another key of :data:`STEMS`.
        attention: 'se' or 'eca' for channel attention at the end of the branches, or
            None.
        se_ratio: Hidden channels of squeeze-excite, as a ratio to its channels.
        downsample: 'conv' for strided shortcut convolutions (official), or 'avg' for average
            pooling before shortcut convolutions (timm).
        channel_divisor: Channels are rounded to multiples of it.
        gamma_at: 'act' (official) or 'conv' (timm), see
            :class:`~nf_plugins.models.backbones.nf_arch.NFArch`.
        **kwargs: ``in_channels``, ``alpha``, ``act_cfg``, ``conv_cfg``, ``eps_mode``,
            ``skipinit``, ``drop_path_rate``, ``padding``, ``dilations``,
            ``out_indices``, ``frozen_stages``, ``deploy``, ``with_cp``, ...: see
            :class:`~nf_plugins.models.backbones.nf_backbone.NFBackbone`.

    Shape:
        - Input: ``(N, in_channels, H, W)``.
        - Output: a tuple of ``(N, C_i, H_i, W_i)``, not activated.

    Raises:
        ValueError: The depth, stem, activation, attention or padding is unknown, or a tuple
            has the wrong length.

    Source: Brock et al. 2021a; DeepMind's ``nfnets/nf_resnet.py``. Not in DeepMind's code: the
    depth 26 (timm), the CIFAR stem, strides and dilations.

    Example:
        >>> import torch
        >>> net = NFResNet(26, base_channels=8)
        >>> net(torch.randn(1, 3, 64, 64))[0].shape
        torch.Size([1, 256, 2, 2])
    """

    def __init__(
        self,
        depth: int | Sequence[int] = 50,
        base_channels: int = 64,
        strides: Sequence[int] = (1, 2, 2, 2),
        stem: str = 'imagenet',
        attention: str | None = None,
        se_ratio: float = 0.25,
        downsample: str = 'conv',
        channel_divisor: int = 1,
        gamma_at: str = 'act',
        **kwargs: Any,
    ) -> None:
        check_integer('base_channels', base_channels)
        arch = NFArch(
            depths=resnet_depths(depth),
            widths=tuple(4 * base_channels * 2**i for i in range(4)),
            stem=stem,
            stem_channels=base_channels,
            strides=check_integers('strides', strides, 4),
            attention=attention or None,
            se_ratio=se_ratio,
            downsample=downsample,
            channel_divisor=channel_divisor,
            gamma_at=gamma_at,
        )
        super().__init__(arch, **kwargs)


@MODELS.register_module()
class SkipInitResNet(NFResNet):
    r"""ResNet without norms that only has SkipInit gains, a baseline of the NF papers.

    .. math:: x_{l+1} = x_l + s\, f_l(x_l), \qquad s = 0 \text{ at initialisation}

    It is an :class:`NFResNet` with plain convolutions and without gamma, alpha and beta. Use the
    plain activation in its neck.

    Args:
        depth: As :class:`NFResNet`.
        act_cfg: Config of the activation.
        **kwargs: As :class:`NFResNet`.

    Source: De and Smith 2020, "Batch normalization biases residual blocks towards the
    identity function in deep networks"; DeepMind's ``nfnets/skipinit_resnet.py``.

    Example:
        >>> import torch
        >>> net = SkipInitResNet(26, base_channels=8)
        >>> net(torch.randn(1, 3, 64, 64))[0].shape
        torch.Size([1, 256, 2, 2])
    """

    def __init__(
        self,
        depth: int | Sequence[int] = 50,
        act_cfg: dict = dict(type='ReLU'),
        **kwargs: Any,
    ) -> None:
        defaults = dict(conv_cfg=None, alpha=1.0, rescale_input=False, stem_bias=False)
        super().__init__(depth, act_cfg={**act_cfg, 'gamma': 1.0}, **{**defaults, **kwargs})
