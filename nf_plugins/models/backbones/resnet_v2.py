"""Pre-activation ResNet-V2 with batch norm: the normalised reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from nf_plugins.layers import DropPath, SqueezeExcite, build_activation
from nf_plugins.layers.start import normal_weight, start
from nf_plugins.registry import MODELS
from nf_plugins.utils.checks import (
    check_choice,
    check_config,
    check_integer,
    check_integers,
    check_number,
)

from .conv_builder import ConvBuilder
from .nf_resnet import resnet_depths
from .nf_stem import NFStem
from .residual_block import ResidualBlock, add_shortcut, may_overwrite
from .staged import BlockPlace, StagedBackbone

INITS = {'he': 2.0, 'lecun': 1.0}
"""Name of an initialisation -> variance of a weight times its fan-in."""


class ResNetV2Block(ResidualBlock):
    """Block of three convolutions, each after a norm and an activation in either order.

    Args:
        conv: Builder of the convolutions.
        place: The place of the block.
        act_cfg: Config of the activation.
        norm_cfg: Config of the norms.
        order: 'bn_relu' or 'relu_bn'.
        se_ratio: Hidden channels of squeeze-excite, as a ratio to its channels; 0: no
            squeeze-excite.
        drop_path_rate: Rate of drop-path.
        with_cp: Recompute the block in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        conv: ConvBuilder,
        place: BlockPlace,
        act_cfg: dict,
        norm_cfg: dict,
        order: str,
        se_ratio: float = 0.0,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
    ) -> None:
        super().__init__(with_cp)
        in_channels, out_channels = place.in_channels, place.out_channels
        mid = out_channels // 4
        self.order = order
        self.act, _ = build_activation({'gamma': 1.0, **act_cfg})
        self.norm1 = build_norm_layer(norm_cfg, in_channels)[1]
        self.conv1 = conv(in_channels, mid, 1)
        self.norm2 = build_norm_layer(norm_cfg, mid)[1]
        self.conv2 = conv(mid, mid, 3, place.stride, place.dilation)
        self.norm3 = build_norm_layer(norm_cfg, mid)[1]
        self.conv3 = conv(mid, out_channels, 1)
        self.se = None
        if se_ratio:
            self.se = SqueezeExcite(out_channels, max(1, int(se_ratio * out_channels)), factor=1.0)
        self.drop_path = DropPath(drop_path_rate, scale_by_keep=True)
        self.downsample = None
        if place.index_in_stage == 0:
            self.downsample = conv(in_channels, out_channels, 1, place.stride)

    def _preactivate(self, norm: nn.Module, x: Tensor) -> Tensor:
        return self.act(norm(x)) if self.order == 'bn_relu' else norm(self.act(x))

    def inner_forward(self, x: Tensor) -> Tensor:
        out = self._preactivate(self.norm1, x)
        shortcut = x if self.downsample is None else self.downsample(out)
        out = self.conv1(out)
        out = self.conv2(self._preactivate(self.norm2, out))
        out = self.conv3(self._preactivate(self.norm3, out))
        if self.se is not None:
            out = self.se(out)
        inplace = may_overwrite(self.conv3, self.se, self.drop_path)
        return add_shortcut(self.drop_path(out), shortcut, inplace)


@MODELS.register_module()
class ResNetV2(StagedBackbone):
    r"""Pre-activation ResNet with batch norm, as in the papers' comparisons.

    The variance of the branches at initialisation depends on the order and on the
    initialisation. It is :math:`1 - 1/\pi \approx 0.68` for BN-ReLU with He initialisation, and 1
    for ReLU-BN with weights of variance ``1 / fan_in``. Each block increases the variance of the
    signal by this value, and each transition resets it.

    The output is neither normalised nor activated. Add a ``ReLUNeck`` with ``norm_cfg`` after it.

    Args:
        depth: 26, 50, 101, 152, 200, 288, 600, or the blocks of the four stages.
        base_channels: Bottleneck width of the first stage.
        in_channels: Channels of the image.
        order: 'bn_relu' or 'relu_bn'.
        init: 'he' (weight variance ``2 / fan_in``) or 'lecun' (``1 / fan_in``). None takes 'he'
            for 'bn_relu' and 'lecun' for 'relu_bn', as in the sentences above.
        stem: 'imagenet' (7x7, stride 2, max-pooling) or 'cifar' (3x3, stride 1).
        strides: Stride of each stage.
        dilations: Dilation of each stage.
        act_cfg: Config of the activation.
        norm_cfg: Config of the norm.
        conv_cfg: Config of the convolutions.
        attention: 'se' for squeeze-excite at the end of the branches, or None.
        drop_path_rate: Rate of drop-path: ``rate * i / N`` for block i of N.
        padding: 'same' (TF style, as in the official code) or 'symmetric'.
        out_indices: Stages whose outputs are returned.
        frozen_stages: Number of the last frozen stage; the stem is stage 0. -1 freezes nothing.
        norm_eval: Keep batch norm layers in evaluation mode.
        with_cp: Recompute the blocks in the backward pass instead of keeping their activations.
        init_cfg: mm initialisation config.

    Shape:
        - Input: ``(N, in_channels, H, W)``.
        - Output: a tuple of ``(N, C_i, H_i, W_i)``.

    Raises:
        ValueError: The depth, order, init, stem, attention or padding is unknown.

    Source: He et al. 2016, "Identity mappings in deep residual networks"; DeepMind's
    ``nfnets/resnet.py``. Brock et al. 2021a, section 3, for the order and the initialisation.

    Example:
        >>> import torch
        >>> net = ResNetV2(26, base_channels=8, order='relu_bn')
        >>> net(torch.randn(1, 3, 64, 64))[0].shape
        torch.Size([1, 256, 2, 2])
    """

    def __init__(
        self,
        depth: int | Sequence[int] = 50,
        base_channels: int = 64,
        in_channels: int = 3,
        order: str = 'bn_relu',
        init: str | None = None,
        stem: str = 'imagenet',
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        act_cfg: dict = dict(type='ReLU'),
        norm_cfg: dict = dict(type='BN'),
        conv_cfg: dict | None = None,
        attention: str | None = None,
        drop_path_rate: float = 0.0,
        padding: str = 'same',
        out_indices: Sequence[int] = (3,),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        depths = resnet_depths(depth)
        check_integer('base_channels', base_channels)
        check_integer('in_channels', in_channels)
        strides = check_integers('strides', strides, 4)
        dilations = check_integers('dilations', dilations, 4)
        check_choice('order', order, ('bn_relu', 'relu_bn'))
        check_choice('init', init, (None, *INITS))
        check_choice('attention', attention, (None, 'se'))
        check_number('drop_path_rate', drop_path_rate, 'in [0, 1)')
        check_config('act_cfg', act_cfg)
        check_config('norm_cfg', norm_cfg)
        super().__init__(4, out_indices, frozen_stages, norm_eval, init_cfg)
        conv = ConvBuilder(conv_cfg, padding, bias=False)
        self.stem = NFStem(stem, in_channels, base_channels, conv)
        se_ratio = 0.25 if attention == 'se' else 0.0

        def make_block(place: BlockPlace, previous: nn.Module | None) -> ResNetV2Block:
            rate = place.drop_path_rate(drop_path_rate)
            return ResNetV2Block(conv, place, act_cfg, norm_cfg, order, se_ratio, rate, with_cp)

        widths = [4 * base_channels * 2**i for i in range(4)]
        self.make_stages(make_block, base_channels, depths, widths, strides, dilations)
        gain = INITS[init or ('he' if order == 'bn_relu' else 'lecun')]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                start(module, normal_weight, std=math.sqrt(gain / module.weight[0].numel()))
        self.freeze_stages()

    def stem_modules(self) -> list[nn.Module]:
        return [self.stem]

    def forward_stem(self, x: Tensor) -> Tensor:
        return self.stem(x)
