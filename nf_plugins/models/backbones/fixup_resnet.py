"""Fixup ResNet, an earlier network without norms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nf_plugins.layers import DropPath
from nf_plugins.layers.start import normal_weight, start
from nf_plugins.registry import MODELS
from nf_plugins.utils.checks import check_integer, check_integers, check_number

from .conv_builder import ConvBuilder
from .nf_resnet import resnet_depths
from .nf_stem import NFStem
from .residual_block import ResidualBlock, activate
from .staged import BlockPlace, StagedBackbone


class FixupBlock(ResidualBlock):
    """Post-activation bottleneck block with scalar biases and a scale.

    Args:
        conv: Builder of the convolutions.
        place: The place of the block.
        drop_path_rate: Rate of drop-path, without rescaling.
        with_cp: Recompute the block in the backward pass instead of keeping its activations.
    """

    BIASES = ('bias1a', 'bias1b', 'bias2a', 'bias2b', 'bias3a', 'bias3b')

    def __init__(
        self,
        conv: ConvBuilder,
        place: BlockPlace,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
    ) -> None:
        super().__init__(with_cp)
        in_channels, out_channels = place.in_channels, place.out_channels
        mid = out_channels // 4
        self.conv1 = conv(in_channels, mid, 1)
        self.conv2 = conv(mid, mid, 3, place.stride, place.dilation)
        self.conv3 = conv(mid, out_channels, 1)
        self.downsample = None
        if place.is_transition:
            self.downsample = conv(in_channels, out_channels, 1, place.stride)
            start(self.downsample, normal_weight, std=math.sqrt(2 / out_channels))
        for layer, kernel_size in ((self.conv1, 1), (self.conv2, 3)):
            fan_out = mid * kernel_size**2
            start(layer, normal_weight, std=math.sqrt(2 / fan_out) * place.num_blocks**-0.25)
        start(self.conv3, normal_weight, std=0.0)
        for name in self.BIASES:
            self.register_parameter(name, nn.Parameter(torch.zeros(())))
        self.scale = nn.Parameter(torch.ones(()))
        self.relu = nn.ReLU()
        self.drop_path = DropPath(drop_path_rate)

    def reset_parameters(self) -> None:
        """Set the block's own biases and scale to their initial values."""
        for name in self.BIASES:
            nn.init.zeros_(getattr(self, name))
        nn.init.ones_(self.scale)

    def inner_forward(self, x: Tensor) -> Tensor:
        shifted = x + self.bias1a
        out = activate(self.relu, self.conv1(shifted) + self.bias1b)
        out = activate(self.relu, self.conv2(out + self.bias2a) + self.bias2b)
        out = self.drop_path(self.conv3(out + self.bias3a) * self.scale + self.bias3b)
        if self.downsample is None:  # add the bias to the branch: the shortcut stays the identity
            return activate(self.relu, x + (out + self.bias1a))
        return activate(self.relu, self.downsample(shifted) + out)


@MODELS.register_module()
class FixupResNet(StagedBackbone):
    """ResNet without norms, with Fixup initialisation, a baseline of the NF papers.

    The last convolution of each branch starts at 0. The initial weights of the other
    convolutions are smaller in deeper networks. There are scalar biases before and after the
    convolutions. The output is already activated and only needs average pooling.

    Args:
        depth: 26, 50, 101, 152, 200, 288, 600, or the blocks of the four stages.
        base_channels: Bottleneck width of the first stage.
        in_channels: Channels of the image.
        stem: 'imagenet' (7x7, stride 2, max-pooling) or 'cifar' (3x3, stride 1).
        strides: Stride of each stage.
        dilations: Dilation of each stage.
        drop_path_rate: Rate of drop-path: ``rate * i / N`` for block i of N.
        padding: 'same' (TF style, as in the official code) or 'symmetric'.
        out_indices: Stages whose outputs are returned.
        frozen_stages: Number of the last frozen stage; the stem is stage 0. -1 freezes nothing.
        with_cp: Recompute the blocks in the backward pass instead of keeping their activations.
        init_cfg: mm initialisation config. The network initialises itself without it.

    Source: Zhang et al. 2019, "Fixup initialization"; DeepMind's
    ``nfnets/fixup_resnet.py``. There the last bias is added to the pooled features. Here it is
    added to the last feature map, which is equal after average pooling.

    Example:
        >>> import torch
        >>> FixupResNet(26, base_channels=8)(torch.randn(1, 3, 64, 64))[0].shape
        torch.Size([1, 256, 2, 2])
    """

    def __init__(
        self,
        depth: int | Sequence[int] = 50,
        base_channels: int = 64,
        in_channels: int = 3,
        stem: str = 'imagenet',
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        drop_path_rate: float = 0.0,
        padding: str = 'same',
        out_indices: Sequence[int] = (3,),
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        depths = resnet_depths(depth)
        check_integer('base_channels', base_channels)
        check_integer('in_channels', in_channels)
        strides = check_integers('strides', strides, 4)
        dilations = check_integers('dilations', dilations, 4)
        check_number('drop_path_rate', drop_path_rate, 'in [0, 1)')
        super().__init__(4, out_indices, frozen_stages, init_cfg=init_cfg)
        conv = ConvBuilder(None, padding, bias=False, as_haiku=True)
        self.stem = NFStem(stem, in_channels, base_channels, conv)
        self.bias1 = nn.Parameter(torch.zeros(()))
        self.relu = nn.ReLU()

        def make_block(place: BlockPlace, previous: nn.Module | None) -> FixupBlock:
            return FixupBlock(conv, place, place.drop_path_rate(drop_path_rate), with_cp)

        widths = [4 * base_channels * 2**i for i in range(4)]
        self.make_stages(make_block, base_channels, depths, widths, strides, dilations)
        self.bias2 = nn.Parameter(torch.zeros(()))
        self.freeze_stages()

    def reset_parameters(self) -> None:
        """Set the network's own biases to their initial values."""
        nn.init.zeros_(self.bias1)
        nn.init.zeros_(self.bias2)

    def stem_modules(self) -> list[nn.Module]:
        return [self.stem]

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        depth, layers = super().get_layer_depth(param_name, prefix)
        return (layers - 1 if param_name == f'{prefix}bias2' else depth), layers

    def freeze_stages(self) -> None:
        super().freeze_stages()
        if self.frozen_stages >= 0:
            self.bias1.requires_grad_(False)
        if self.frozen_stages == self.num_stages:
            self.bias2.requires_grad_(False)

    def forward_stem(self, x: Tensor) -> Tensor:
        # The stem pools before the bias and the ReLU. Both are monotonic, so pooling after them
        # would give the same result.
        return activate(self.relu, self.stem(x) + self.bias1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outs = super().forward(x)
        if self.num_stages - 1 in self.out_indices:
            outs = (*outs[:-1], outs[-1] + self.bias2)
        return outs
