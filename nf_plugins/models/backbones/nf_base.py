"""The block and the backbone of all normalizer-free families."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from mmcv.cnn import build_conv_layer
from torch import Tensor, nn

from nf_plugins.layers import DropPath, ScaledWSConv2d, SqueezeExcite, build_activation
from nf_plugins.registry import MODELS

from .base import ResidualBlock, StagedBackbone, check_choice, check_stages


@dataclass(frozen=True)
class NFArch:
    """What tells one normalizer-free architecture from another.

    Args:
        depths: Blocks of each stage.
        widths: Output channels of each stage.
        stem: A key of :data:`STEMS`.
        stem_channels: Output channels of the stem.
        strides: Stride of each stage.
        bottleneck_ratio: Width of the 3x3 convolutions per output channel.
        group_width: Channels per group of the 3x3 convolutions; None for one group.
        se_ratio: Hidden channels of squeeze-excite per channel, where it is used.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    stem: str = 'imagenet'
    stem_channels: int = 64
    strides: tuple[int, ...] = (1, 2, 2, 2)
    bottleneck_ratio: float = 0.25
    group_width: int | None = None
    se_ratio: float = 0.25


STEMS: dict[str, tuple[tuple[tuple[int, int], ...], bool]] = {
    'imagenet': (((7, 2),), True),
    'cifar': (((3, 1),), False),
}
"""Stem name -> the (kernel, stride) of its convolutions, and whether max-pooling follows."""


class ConvBuilder:
    """Builds the convolutions of a network with one config and one padding style.

    Args:
        conv_cfg: mm config of the convolution.
        padding: 'same' (TF style) or 'symmetric' (``dilation * (kernel - 1) / 2``).
        deploy: Plain convolutions, whose weights hold the constant factors.
    """

    def __init__(self, conv_cfg: dict | None, padding: str, deploy: bool) -> None:
        self.cfg = dict(type='Conv2d') if deploy or conv_cfg is None else dict(conv_cfg)
        self.padding = check_choice('padding', padding, ('same', 'symmetric'))
        with MODELS.parent.switch_scope_and_registry(None) as registry:
            layer = registry.get(self.cfg['type'])
        if layer is None:
            raise ValueError(f'unknown convolution conv_cfg.type={self.cfg["type"]!r}')
        self.scaled = issubclass(layer, ScaledWSConv2d)
        self.plain = layer is nn.Conv2d
        self.folds_gamma = self.scaled or deploy
        """Whether factors of a convolution's input are left to its weight."""

    def __call__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        gamma: float = 1.0,
    ) -> nn.Module:
        cfg = dict(self.cfg)
        if self.scaled:
            cfg['gamma'] = gamma
        padding: int | str = dilation * (kernel_size - 1) // 2
        if self.padding == 'same':
            padding = 'same' if kernel_size > 1 else 0
            if padding and stride > 1 and self.plain:
                cfg['type'], padding = 'Conv2dAdaptivePadding', 0
        return build_conv_layer(
            cfg, in_channels, out_channels, kernel_size, stride, padding, dilation, groups
        )


class NFStem(nn.Module):
    """The convolutions (and max-pooling) in front of the first stage."""

    def __init__(self, kind: str, in_channels: int, channels: int, conv: ConvBuilder) -> None:
        super().__init__()
        layers, self.has_pool = STEMS[kind]
        self.same = conv.padding == 'same'
        ((kernel, stride),) = layers
        self.conv1 = conv(in_channels, channels, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if not self.has_pool:
            return x
        if self.same:  # SAME for a 3x3 window and stride 2: nothing in front of an even size
            height, width = x.shape[-2:]
            return F.max_pool2d(x, 3, 2, (height % 2, width % 2), ceil_mode=True)
        return F.max_pool2d(x, 3, 2, 1)


class NFBlock(ResidualBlock):
    r"""The normalizer-free pre-activation bottleneck block.

    .. math:: x_{l+1} = \mathrm{shortcut} + \alpha\, s\, f(\gamma\, \mathrm{act}(x_l) / \beta_l)

    with the SkipInit gain :math:`s`; the shortcut is :math:`x_l`, or a convolution of
    :math:`\gamma\, \mathrm{act}(x_l) / \beta_l` where the shape changes. The factors
    :math:`\gamma` and :math:`1 / \beta` are part of the standardized weights, so no
    activation is multiplied by them.

    Args:
        conv: Builder of the convolutions.
        act_cfg: Config of the activation.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        mid_channels: Channels of the 3x3 convolution.
        stride: Stride of the 3x3 convolution.
        dilation: Its dilation.
        groups: Its groups.
        alpha: Scale of the branch.
        beta: Expected standard deviation of the input.
        skipinit: Start of the SkipInit gain; None leaves the gain out.
        se_ratio: Ratio of the squeeze-excite at the end of the branch; 0 for none.
        drop_path_rate: Rate of stochastic depth, not rescaled.
        deploy: Build the folded block.
        with_cp: Recompute in the backward pass.

    Attributes:
        expected_var: Variance of the output that the method expects,
            :math:`\beta^2 + \alpha^2`, or :math:`1 + \alpha^2` after a transition.
    """

    def __init__(
        self,
        conv: ConvBuilder,
        act_cfg: dict,
        in_channels: int,
        out_channels: int,
        mid_channels: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        alpha: float = 0.2,
        beta: float = 1.0,
        skipinit: float | None = 0.0,
        se_ratio: float = 0.0,
        drop_path_rate: float = 0.0,
        deploy: bool = False,
        with_cp: bool = False,
    ) -> None:
        super().__init__(with_cp)
        self.act, gamma = build_activation(act_cfg)
        self.gamma = 1.0 if conv.folds_gamma else gamma
        self.beta = 1.0 if conv.folds_gamma else beta
        self.alpha = alpha
        self.conv1 = conv(in_channels, mid_channels, 1, gamma=gamma / beta)
        self.conv2 = conv(mid_channels, mid_channels, 3, stride, dilation, groups, gamma=gamma)
        self.conv3 = conv(mid_channels, out_channels, 1, gamma=gamma)
        self.se = SqueezeExcite(out_channels, se_ratio) if se_ratio else None
        self.drop_path = DropPath(drop_path_rate)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            self.downsample = conv(in_channels, out_channels, 1, stride, gamma=gamma / beta)
        self.expected_var = (beta**2 if self.downsample is None else 1.0) + alpha**2
        self.skip_gain = None if skipinit is None else nn.Parameter(torch.tensor(float(skipinit)))
        if deploy and self.se is None:
            self.alpha, self.skip_gain = 1.0, None

    def _activate(self, x: Tensor, gain: float) -> Tensor:
        x = self.act(x)
        return x if gain == 1 else x * gain

    def inner_forward(self, x: Tensor) -> Tensor:
        out = self._activate(x, self.gamma / self.beta)
        shortcut = x if self.downsample is None else self.downsample(out)
        out = self.conv1(out)
        out = self.conv2(self._activate(out, self.gamma))
        out = self.conv3(self._activate(out, self.gamma))
        if self.se is not None:
            out = self.se(out)
        out = self.drop_path(out)
        if self.skip_gain is None:
            return torch.add(shortcut, out, alpha=self.alpha)
        return torch.addcmul(shortcut, out, self.skip_gain.to(out.dtype), value=self.alpha)

    @torch.no_grad()
    def switch_to_deploy(self) -> None:
        """Fold the standardization and, where it is linear, the scale of the branch."""
        for conv in (self.conv1, self.conv2, self.conv3, self.downsample):
            if hasattr(conv, 'switch_to_deploy'):
                conv.switch_to_deploy()
        if self.se is None:  # else the branch is not linear in the last convolution
            scale = self.alpha * (1.0 if self.skip_gain is None else self.skip_gain)
            for param in self.conv3.parameters():
                param.mul_(scale)
            self.alpha, self.skip_gain = 1.0, None


class NFBackbone(StagedBackbone):
    r"""A normalizer-free network, built from an :class:`NFArch`.

    Each block divides its input by the standard deviation that the method expects:
    1 after the stem; every block adds :math:`\alpha^2` to the variance, and a block
    with a convolution on its shortcut resets it to :math:`1 + \alpha^2`.

    The output is not activated: :class:`ReLUNeck` with the network's activation
    (``act_cfg=dict(type='GammaAct', act=...)``) follows.
    """

    def __init__(
        self,
        arch: NFArch,
        in_channels: int = 3,
        alpha: float = 0.2,
        act_cfg: dict = dict(type='ReLU'),
        conv_cfg: dict | None = dict(type='ScaledWS'),
        eps_mode: str | None = None,
        skipinit: bool | float = True,
        attention: str | None = None,
        drop_path_rate: float = 0.0,
        padding: str = 'same',
        dilations: Sequence[int] = (1, 1, 1, 1),
        out_indices: Sequence[int] = (3,),
        frozen_stages: int = -1,
        deploy: bool = False,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        depths = check_stages('depth', arch.depths)
        strides = check_stages('strides', arch.strides)
        dilations = check_stages('dilations', dilations)
        check_choice('stem', arch.stem, STEMS)
        check_choice('attention', attention, (None, 'se'))
        if not isinstance(alpha, (int, float)) or not alpha > 0 or not math.isfinite(alpha):
            raise ValueError(f'alpha must be a positive number, got {alpha!r}')
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate must be in [0, 1), got {drop_path_rate!r}')
        super().__init__(4, out_indices, frozen_stages, init_cfg=init_cfg)
        if eps_mode is not None:
            conv_cfg = {**(conv_cfg or {}), 'eps_mode': eps_mode}
        conv = ConvBuilder(conv_cfg, padding, deploy)
        self.arch = arch
        self.stem = NFStem(arch.stem, in_channels, arch.stem_channels, conv)

        gain_init = {True: 0.0, False: None}[skipinit] if isinstance(skipinit, bool) else skipinit
        channels, expected_var = arch.stem_channels, 1.0

        def make_block(stage: int, index: int) -> NFBlock:
            nonlocal channels, expected_var
            mid = int(arch.widths[stage] * arch.bottleneck_ratio)
            groups = 1 if arch.group_width is None else mid // arch.group_width
            block = NFBlock(
                conv,
                act_cfg,
                channels,
                arch.widths[stage],
                mid if arch.group_width is None else groups * arch.group_width,
                stride=strides[stage] if index == 0 else 1,
                dilation=dilations[stage],
                groups=groups,
                alpha=alpha,
                beta=math.sqrt(expected_var),
                skipinit=gain_init,
                se_ratio=arch.se_ratio if attention == 'se' else 0.0,
                drop_path_rate=drop_path_rate * (sum(depths[:stage]) + index) / sum(depths),
                deploy=deploy,
                with_cp=with_cp,
            )
            channels, expected_var = arch.widths[stage], block.expected_var
            return block

        self.make_stages(depths, make_block)
        self.feat_dim = channels

    def stem_modules(self) -> list[nn.Module]:
        return [self.stem]

    def forward_stem(self, x: Tensor) -> Tensor:
        return self.stem(x)

    def switch_to_deploy(self) -> None:
        """Turn the network into one of plain convolutions with the same outputs, in place.

        Its weights load into a network built with ``deploy=True``.
        """
        for module in list(self.modules()):
            if isinstance(module, NFBlock):
                module.switch_to_deploy()
        super().switch_to_deploy()
