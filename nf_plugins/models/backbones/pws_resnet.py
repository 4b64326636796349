"""ResNet with Parametric Weight Standardization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import build_conv_layer, build_norm_layer
from torch import Tensor, nn

from nf_plugins.layers import DropPath
from nf_plugins.registry import MODELS
from nf_plugins.utils.checks import (
    check_choice,
    check_config,
    check_integer,
    check_integers,
    check_number,
)

from .base import ResidualBlock, StagedBackbone, activate, add_shortcut, may_overwrite


def _conv(conv_cfg: dict | None, *args: Any, initalpha: bool = False, **kwargs: Any) -> nn.Module:
    """Build a convolution; ``initalpha`` says whether this one may use that option."""
    if conv_cfg is not None and not initalpha:
        conv_cfg = {key: value for key, value in conv_cfg.items() if key != 'initalpha'}
    return build_conv_layer(conv_cfg, *args, **kwargs)


class PWSBlock(ResidualBlock):
    """ReLU, then the convolutions of a basic or bottleneck block, without norms.

    The ReLU stands at the start of the block, so that the identity path carries a
    signal of approximately zero mean.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        bottleneck: Three convolutions (1x1, 3x3, 1x1 on a quarter of the channels)
            instead of two (3x3, 3x3).
        stride: Stride of the first 3x3, or of the first 1x1 in style 'caffe'.
        dilation: Dilation of the 3x3 (the first, in a basic block).
        style: 'pytorch' or 'caffe'.
        avg_down: Average pooling before the shortcut's convolution.
        conv_cfg: Config of the convolutions.
        drop_path_rate: Rate of stochastic depth.
        with_cp: Recompute in the backward pass.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bottleneck: bool,
        stride: int = 1,
        dilation: int = 1,
        style: str = 'pytorch',
        avg_down: bool = False,
        conv_cfg: dict | None = None,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
    ) -> None:
        super().__init__(with_cp)
        mid = out_channels // 4 if bottleneck else out_channels
        first, second = (1, stride) if style == 'pytorch' and bottleneck else (stride, 1)

        def conv3x3(in_channels: int, stride: int, dilation: int, initalpha: bool) -> nn.Module:
            return _conv(
                conv_cfg, in_channels, mid, 3, stride, dilation, dilation, initalpha=initalpha
            )

        if bottleneck:
            self.conv1 = _conv(conv_cfg, in_channels, mid, 1, first, initalpha=True)
            self.conv2 = conv3x3(mid, second, dilation, False)
            self.conv3 = _conv(conv_cfg, mid, out_channels, 1)
        else:
            self.conv1 = conv3x3(in_channels, first, dilation, True)
            self.conv2 = conv3x3(mid, second, 1, False)
            self.conv3 = None
        self.relu = nn.ReLU()
        self.inner_relu = nn.ReLU()
        self.drop_path = DropPath(drop_path_rate, scale_by_keep=True)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            pool = avg_down and stride != 1
            layers = [nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)] * pool
            conv_stride = 1 if pool else stride
            layers += [_conv(conv_cfg, in_channels, out_channels, 1, conv_stride, initalpha=True)]
            self.downsample = nn.Sequential(*layers)

    def inner_forward(self, x: Tensor) -> Tensor:
        out = self.relu(x)
        shortcut = x if self.downsample is None else self.downsample(out)
        out, last = self.conv1(out), self.conv1
        for conv in filter(None, (self.conv2, self.conv3)):
            out, last = conv(activate(self.inner_relu, out, last)), conv
        return add_shortcut(self.drop_path(out), shortcut, may_overwrite(last, self.drop_path))


@MODELS.register_module()
class PWSResNet(StagedBackbone):
    """ResNet whose convolutions are standardized by PWS; one norm, after the stem.

    The output is not activated: :class:`ReLUNeck` with the second norm follows.
    Deviations from the PWSConv repository: stochastic depth and dilations exist.

    Args:
        depth: 18, 34, 50, 101 or 152.
        in_channels: Channels of the image.
        stem_channels: Channels of the stem.
        base_channels: Width of the blocks of the first stage.
        num_stages: Stages, at most 4.
        strides: Stride of each stage.
        dilations: Dilation of each stage.
        out_indices: Stages whose outputs are returned.
        stem: 'imagenet' (7x7, stride 2, max-pooling) or 'cifar' (3x3, stride 1).
        style: Where a bottleneck strides: 'pytorch' (3x3) or 'caffe' (1x1).
        avg_down: Average pooling before the shortcuts' convolutions.
        frozen_stages: Stages that are not trained; -1 for none.
        conv_cfg: Config of the convolutions. ``initalpha`` acts on the stem, the first
            convolution of each block and its downsampling alone.
        norm_cfg: Config of the norm after the stem, or None.
        norm_eval: Keep batch norm layers in evaluation mode.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0.
        with_cp: Recompute the blocks in the backward pass.
        init_cfg: mm initialisation config. The layers initialise themselves.

    Shape:
        - Input: ``(N, in_channels, H, W)``.
        - Output: a tuple of ``(N, C_i, H_i, W_i)``.

    Raises:
        ValueError: An unknown depth, stem or style, or a tuple of the wrong length.

    Source: "Delving into variance transmission and normalization"
    (arXiv 2103.11590) and its repository, PWSConv.

    Example:
        >>> import torch
        >>> net = PWSResNet(18, base_channels=8, stem_channels=8, stem='cifar')
        >>> net(torch.randn(1, 3, 32, 32))[0].shape
        torch.Size([1, 64, 4, 4])
    """

    ARCHS = {
        18: (False, (2, 2, 2, 2)),
        34: (False, (3, 4, 6, 3)),
        50: (True, (3, 4, 6, 3)),
        101: (True, (3, 4, 23, 3)),
        152: (True, (3, 8, 36, 3)),
    }

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        stem_channels: int = 64,
        base_channels: int = 64,
        num_stages: int = 4,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        out_indices: Sequence[int] = (3,),
        stem: str = 'imagenet',
        style: str = 'pytorch',
        avg_down: bool = False,
        frozen_stages: int = -1,
        conv_cfg: dict | None = dict(type='nf_plugins.PWS'),
        norm_cfg: dict | None = dict(type='GN', num_groups=1),
        norm_eval: bool = False,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        check_choice('depth', depth, self.ARCHS)
        check_choice('stem', stem, ('imagenet', 'cifar'))
        check_choice('style', style, ('pytorch', 'caffe'))
        check_choice('num_stages', num_stages, (1, 2, 3, 4))
        check_integer('in_channels', in_channels)
        check_integer('stem_channels', stem_channels)
        check_integer('base_channels', base_channels)
        strides = check_integers('strides', strides, num_stages)
        dilations = check_integers('dilations', dilations, num_stages)
        check_number('drop_path_rate', drop_path_rate, 'in [0, 1)')
        for name, cfg in dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg).items():
            if cfg is not None:
                check_config(name, cfg)
        super().__init__(num_stages, out_indices, frozen_stages, norm_eval, init_cfg)
        bottleneck, depths = self.ARCHS[depth]
        depths = depths[:num_stages]
        self.depth = depth

        kernel, stride, padding = (7, 2, 3) if stem == 'imagenet' else (3, 1, 1)
        self.conv1 = _conv(
            conv_cfg, in_channels, stem_channels, kernel, stride, padding, initalpha=True
        )
        self.norm1 = (
            build_norm_layer(norm_cfg, stem_channels)[1] if norm_cfg is not None else nn.Identity()
        )
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == 'imagenet' else nn.Identity()

        widths = [base_channels * (4 if bottleneck else 1) * 2**i for i in range(num_stages)]

        def make_block(stage: int, index: int) -> PWSBlock:
            first = index == 0
            previous = widths[stage - 1] if stage else stem_channels
            position = sum(depths[:stage]) + index
            return PWSBlock(
                previous if first else widths[stage],
                widths[stage],
                bottleneck,
                stride=strides[stage] if first else 1,
                dilation=dilations[stage],
                style=style,
                avg_down=avg_down,
                conv_cfg=conv_cfg,
                drop_path_rate=drop_path_rate * position / max(sum(depths) - 1, 1),
                with_cp=with_cp,
            )

        self.make_stages(depths, make_block)
        self.feat_dim = widths[-1]
        self.freeze_stages()

    def stem_modules(self) -> list[nn.Module]:
        return [self.conv1, self.norm1]

    def forward_stem(self, x: Tensor) -> Tensor:
        return self.maxpool(self.relu(self.norm1(self.conv1(x))))
