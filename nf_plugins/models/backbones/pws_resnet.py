"""ResNet with Parametric Weight Standardization."""

from __future__ import annotations

from collections.abc import Sequence

from mmcv.cnn import build_norm_layer
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

from .conv_builder import ConvBuilder
from .nf_stem import STEMS
from .residual_block import ResidualBlock, activate, add_shortcut, may_overwrite
from .staged import BlockPlace, StagedBackbone


class PWSBlock(ResidualBlock):
    """Basic or bottleneck block without norms, with a ReLU at its start.

    Because the ReLU is at the start, the mean of the signal on the identity path is about zero.

    Args:
        conv: Builder of the convolutions. Its option ``initalpha`` only affects the first
            convolution and the one of the shortcut.
        place: The place of the block. The first 3x3 convolution has its stride (in style
            'caffe', the first 1x1 convolution) and its dilation.
        bottleneck: Use three convolutions (1x1, 3x3, 1x1 on a quarter of the channels)
            instead of two (3x3, 3x3).
        style: 'pytorch' or 'caffe'.
        avg_down: Use average pooling before the shortcut's convolution.
        drop_path_rate: Rate of drop-path.
        with_cp: Recompute the block in the backward pass instead of keeping its activations.
    """

    conv3: nn.Module | None

    def __init__(
        self,
        conv: ConvBuilder,
        place: BlockPlace,
        bottleneck: bool,
        style: str = 'pytorch',
        avg_down: bool = False,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
    ) -> None:
        super().__init__(with_cp)
        in_channels, out_channels, stride = place.in_channels, place.out_channels, place.stride
        mid = out_channels // 4 if bottleneck else out_channels
        first, second = (1, stride) if style == 'pytorch' and bottleneck else (stride, 1)
        later = conv.without('initalpha')
        if bottleneck:
            self.conv1 = conv(in_channels, mid, 1, first)
            self.conv2 = later(mid, mid, 3, second, place.dilation)
            self.conv3 = later(mid, out_channels, 1)
        else:
            self.conv1 = conv(in_channels, mid, 3, first, place.dilation)
            self.conv2 = later(mid, mid, 3, second)
            self.conv3 = None
        self.relu = nn.ReLU()
        self.inner_relu = nn.ReLU()
        self.drop_path = DropPath(drop_path_rate, scale_by_keep=True)
        self.downsample = None
        if place.is_transition:
            pool = avg_down and stride > 1
            layers: list[nn.Module] = []
            if pool:
                layers += [nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)]
            layers += [conv(in_channels, out_channels, 1, 1 if pool else stride)]
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
    """ResNet with PWS convolutions and only one norm, after the stem.

    The output is not activated. Add a :class:`ReLUNeck` with the second norm after it. Not in the
    PWSConv repository: drop-path and dilations.

    Args:
        depth: 18, 34, 50, 101 or 152, or the bottleneck blocks of each stage.
        in_channels: Channels of the image.
        stem_channels: Channels of the stem.
        base_channels: Width of the blocks of the first stage.
        num_stages: Stages, at most 4.
        strides: Stride of each stage.
        dilations: Dilation of each stage.
        out_indices: Stages whose outputs are returned.
        stem: 'imagenet' (7x7, stride 2, max-pooling) or 'cifar' (3x3, stride 1).
        style: Where a bottleneck strides: 'pytorch' (3x3) or 'caffe' (1x1).
        avg_down: Use average pooling before the shortcuts' convolutions.
        frozen_stages: Number of the last frozen stage; the stem is stage 0. -1 freezes nothing.
        conv_cfg: Config of the convolutions. ``initalpha`` only affects the stem, and the first
            convolution and the shortcut of each block.
        norm_cfg: Config of the norm after the stem, or None.
        norm_eval: Keep batch norm layers in evaluation mode.
        drop_path_rate: Rate of drop-path of the last block; the rates grow linearly from 0.
        with_cp: Recompute the blocks in the backward pass instead of keeping their activations.
        init_cfg: mm initialisation config. The layers initialise themselves without it.

    Shape:
        - Input: ``(N, in_channels, H, W)``.
        - Output: a tuple of ``(N, C_i, H_i, W_i)``.

    Raises:
        ValueError: The depth, stem or style is unknown, or a tuple has the wrong length.

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
        depth: int | Sequence[int],
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
        depths: tuple[int, ...]
        if not isinstance(depth, Sequence) or isinstance(depth, str):
            bottleneck, depths = self.ARCHS[check_choice('depth', depth, self.ARCHS)]
        else:
            bottleneck, depths = True, check_integers('depth', depth, num_stages)
        self.depth = depth

        conv = ConvBuilder(conv_cfg, 'symmetric', bias=None)
        ((kernel, stride, _),), has_pool = STEMS[stem]
        self.conv1 = conv(in_channels, stem_channels, kernel, stride)
        self.norm1 = (
            build_norm_layer(norm_cfg, stem_channels)[1] if norm_cfg is not None else nn.Identity()
        )
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if has_pool else nn.Identity()

        def make_block(place: BlockPlace, previous: nn.Module | None) -> PWSBlock:
            rate = drop_path_rate * place.index / max(place.num_blocks - 1, 1)
            return PWSBlock(conv, place, bottleneck, style, avg_down, rate, with_cp)

        widths = [base_channels * (4 if bottleneck else 1) * 2**i for i in range(num_stages)]
        self.make_stages(make_block, stem_channels, depths, widths, strides, dilations)
        self.freeze_stages()

    def stem_modules(self) -> list[nn.Module]:
        return [self.conv1, self.norm1]

    def forward_stem(self, x: Tensor) -> Tensor:
        return self.maxpool(self.relu(self.norm1(self.conv1(x))))
