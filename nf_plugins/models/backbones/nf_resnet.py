"""Normalizer-free ResNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nf_plugins.registry import MODELS

from .base import check_choice, check_stages
from .nf_base import NFArch, NFBackbone


@MODELS.register_module()
class NFResNet(NFBackbone):
    r"""NF-ResNet: a pre-activation bottleneck ResNet without normalisation.

    .. math:: x_{l+1} = x_l + \alpha\, s\, f_l(x_l / \beta_l), \qquad
              \beta_l^2 = \mathrm{Var}[x_l] \text{ as expected}

    Args:
        depth: 26, 50, 101, 152, 200, 288, 600, or the blocks of the four stages.
        base_channels: Bottleneck width of the first stage; the official ``width=4``.
        in_channels: Channels of the image.
        stem: 'imagenet' (7x7, stride 2, max-pooling) or 'cifar' (3x3, stride 1).
        strides: Stride of each stage.
        alpha: Scale of the branches: each adds :math:`\alpha^2` to the variance.
        act_cfg: Config of the activation; it needs a known gain (see
            :data:`nf_plugins.functional.GAMMA`) or ``gamma``.
        conv_cfg: Config of the convolutions. With another than ScaledWS the
            activations are multiplied by their gain.
        eps_mode: 'clamp' or 'add', see :class:`ScaledWSConv2d`; None for its default.
        skipinit: A learnable gain of each branch. True starts it at 0 as in the
            official code, a number at that number; False leaves it out.
        attention: 'se' for squeeze-excite at the end of the branches, or None.
        drop_path_rate: Stochastic depth: block i of N drops with ``rate * i / N``,
            and what is kept is not rescaled.
        padding: 'same' (TF style, as in the official code) or 'symmetric'.
        dilations: Dilation of each stage.
        out_indices: Stages whose outputs are returned.
        frozen_stages: Stages that are not trained, the stem being stage 0; -1 for none.
        deploy: Build the network that :meth:`switch_to_deploy` makes.
        with_cp: Recompute the blocks in the backward pass.
        init_cfg: mm initialisation config. The layers initialise themselves.

    Shape:
        - Input: ``(N, in_channels, H, W)``.
        - Output: a tuple of ``(N, C_i, H_i, W_i)``, not activated.

    Raises:
        ValueError: An unknown depth, stem, activation, attention or padding, or a
            tuple of the wrong length.

    Source: Brock et al. 2021a; DeepMind's ``nfnets/nf_resnet.py``. Deviations: the
    depth 26 (timm), the CIFAR stem, strides and dilations exist.

    Example:
        >>> import torch
        >>> net = NFResNet(26, base_channels=8)
        >>> net(torch.randn(1, 3, 64, 64))[0].shape
        torch.Size([1, 256, 2, 2])
    """

    DEPTHS = {
        26: (2, 2, 2, 2),
        50: (3, 4, 6, 3),
        101: (3, 4, 23, 3),
        152: (3, 8, 36, 3),
        200: (3, 24, 36, 3),
        288: (24, 24, 24, 24),
        600: (50, 50, 50, 50),
    }

    def __init__(
        self,
        depth: int | Sequence[int] = 50,
        base_channels: int = 64,
        in_channels: int = 3,
        stem: str = 'imagenet',
        strides: Sequence[int] = (1, 2, 2, 2),
        **kwargs: Any,
    ) -> None:
        if isinstance(depth, int):
            depths = self.DEPTHS[check_choice('depth', depth, self.DEPTHS)]
        else:
            depths = check_stages('depth', depth)
        if not isinstance(base_channels, int) or base_channels < 1:
            raise ValueError(f'base_channels must be a positive integer, got {base_channels!r}')
        arch = NFArch(
            depths=depths,
            widths=tuple(4 * base_channels * 2**i for i in range(4)),
            stem=stem,
            stem_channels=base_channels,
            strides=check_stages('strides', strides),
        )
        super().__init__(arch, in_channels=in_channels, **kwargs)
