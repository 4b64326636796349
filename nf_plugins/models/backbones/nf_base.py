"""The architectures, the block and the backbone of all normalizer-free families."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from mmcv.cnn import build_conv_layer
from torch import Tensor, nn

from nf_plugins.functional import pad_same
from nf_plugins.layers import (
    ECA,
    DropPath,
    SameConv2d,
    ScaledWSConv2d,
    SqueezeExcite,
    StandardizedConv2d,
    build_activation,
    fold,
)
from nf_plugins.registry import class_of
from nf_plugins.utils.checks import (
    LARGEST,
    check_choice,
    check_config,
    check_integer,
    check_integers,
    check_number,
)

from .base import ResidualBlock, StagedBackbone, activate, add_shortcut, may_overwrite

MOST_BLOCKS = 10_000
"""Of a stage: what has more is a mistake, and would be built for hours."""


@dataclass(frozen=True)
class NFArch:
    """What tells one normalizer-free architecture from another.

    Args:
        depths: Blocks of each stage.
        widths: Output channels of each stage, before ``width_mult``.
        stem: A key of :data:`STEMS`.
        stem_channels: Output channels of the stem, before ``width_mult``; None takes
            those of the first stage.
        strides: Stride of each stage.
        width_mult: Factor of all widths.
        bottleneck_ratio: Width of the 3x3 convolutions per output channel of the
            block, or per input channel with ``regnet``.
        group_width: Channels per group of the 3x3 convolutions; None for one group.
        num_3x3: 3x3 convolutions per block, 1 or 2.
        regnet: EfficientNet-like blocks: the bottleneck expands the input, the first
            block does not expand, and the attention stands in the bottleneck.
        attention: 'se', 'eca' or None.
        se_ratio: Hidden channels of squeeze-excite per channel.
        downsample: 'avg' for average pooling in front of a strided shortcut
            convolution, 'conv' for a strided convolution.
        final_ratio: Channels of a final 1x1 convolution as a fraction
            ``(numerator, denominator)`` of the last width; None for no such
            convolution.
        channel_divisor: Round channels to multiples of it (timm: 8).
        gamma_at: 'act': the gain belongs to the activations, and is folded into the
            convolutions behind them (official). 'conv': it belongs to all
            convolutions, also those behind no activation (timm).
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    stem: str = 'imagenet'
    stem_channels: int | None = None
    strides: tuple[int, ...] = (1, 2, 2, 2)
    width_mult: float = 1.0
    bottleneck_ratio: float = 0.25
    group_width: int | None = None
    num_3x3: int = 1
    regnet: bool = False
    attention: str | None = None
    se_ratio: float = 0.5
    downsample: str = 'conv'
    final_ratio: tuple[int, int] | None = None
    channel_divisor: int = 1
    gamma_at: str = 'act'

    def __post_init__(self) -> None:
        for name, most in dict(depths=MOST_BLOCKS, widths=LARGEST, strides=LARGEST).items():
            values = check_integers(name, getattr(self, name), 4, maximum=most)
            object.__setattr__(self, name, values)
        check_choice('stem', self.stem, STEMS)
        check_choice('num_3x3', self.num_3x3, (1, 2))
        check_choice('attention', self.attention, (None, 'se', 'eca'))
        check_choice('downsample', self.downsample, ('conv', 'avg'))
        check_choice('gamma_at', self.gamma_at, ('act', 'conv'))
        check_integer('channel_divisor', self.channel_divisor)
        for name in ('stem_channels', 'group_width'):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name))
        if self.final_ratio is not None:
            check_integers('final_ratio', self.final_ratio, 2)
        for name in ('width_mult', 'bottleneck_ratio', 'se_ratio'):
            check_number(name, getattr(self, name), 'a positive number')

    def round(self, channels: float) -> int:
        """Channels as a multiple of ``channel_divisor``, at least 0.9 of ``channels``."""
        divisor = self.channel_divisor
        if divisor == 1:
            return int(channels)
        rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
        return rounded if rounded >= 0.9 * channels else rounded + divisor

    @property
    def stage_channels(self) -> list[int]:
        return [self.round(width * self.width_mult) for width in self.widths]

    @property
    def first_channels(self) -> int:
        """Channels of the stem."""
        return self.round((self.stem_channels or self.widths[0]) * self.width_mult)

    @property
    def final_channels(self) -> int:
        """Channels of the final convolution, 0 without one."""
        if self.final_ratio is None:
            return 0
        numerator, denominator = self.final_ratio
        if self.channel_divisor == 1:
            return int(numerator * self.stage_channels[-1] // denominator)
        return self.round(self.width_mult * (numerator * self.widths[-1] // denominator))

    def bottleneck(self, in_channels: int, out_channels: int, first: bool) -> tuple[int, int]:
        """Channels and groups of a block's 3x3 convolutions."""
        ratio = 1.0 if self.regnet and first else self.bottleneck_ratio
        mid = self.round((in_channels if self.regnet else out_channels) * ratio)
        if self.group_width is None:
            return mid, 1
        groups = mid // self.group_width
        return groups * self.group_width, groups

    def hidden_channels(self, channels: int) -> int:
        """Hidden channels of squeeze-excite."""
        divisor, hidden = self.channel_divisor, channels * self.se_ratio
        if divisor == 1:
            return max(1, int(hidden))
        return max(divisor, int(hidden + divisor / 2) // divisor * divisor)


STEMS: dict[str, tuple[tuple[tuple[int, int, int | None], ...], bool]] = {
    'imagenet': (((7, 2, None),), True),
    'cifar': (((3, 1, None),), False),
    'regnet': (((3, 2, None),), False),
    'nfnet': (((3, 2, 16), (3, 1, 32), (3, 1, 64), (3, 2, None)), False),
}
"""Stem name -> its convolutions (kernel, stride, channels; None for the stem's), and whether
max-pooling follows."""


def resolve_arch(archs: Mapping[str, NFArch], arch: str | Mapping) -> NFArch:
    """The architecture of a name, or of a dict that overrides fields of a named one.

    Args:
        archs: Table of architectures.
        arch: A key, in any case, or ``dict(base=KEY, field=value, ...)``.

    Raises:
        ValueError: Unknown name or field.
    """
    overrides = {}
    if isinstance(arch, Mapping):
        overrides = dict(arch)
        arch = overrides.pop('base', None)
        if not isinstance(arch, str):
            raise ValueError(f'an arch dict needs base, one of {", ".join(archs)}, got {arch!r}')
    if not isinstance(arch, str):
        raise TypeError(f'arch must be a name or a dict, got {arch!r}')
    named = archs[check_choice('arch', arch.lower(), archs)]
    return override_arch(named, **overrides)


def override_arch(arch: NFArch, **overrides: object) -> NFArch:
    """Replace fields of an architecture, with a clear error for unknown ones."""
    known = [field.name for field in fields(NFArch)]
    for name in overrides:
        check_choice('a field of arch', name, known)
    return replace(arch, **overrides)


class ConvBuilder:
    """Builds the convolutions of a network with one config and one padding style.

    Args:
        conv_cfg: mm config of the convolution.
        padding: 'same' (TF style) or 'symmetric' (``dilation * (kernel - 1) / 2``).
        deploy: Plain convolutions, whose weights hold the constant factors.
        bias: Whether the convolutions have one.
    """

    def __init__(
        self,
        conv_cfg: dict | None,
        padding: str = 'same',
        deploy: bool = False,
        bias: bool = True,
    ) -> None:
        plain = deploy or conv_cfg is None
        self.cfg = dict(type='Conv2d') if plain else dict(check_config('conv_cfg', conv_cfg))
        self.padding = check_choice('padding', padding, ('same', 'symmetric'))
        self.bias = bias
        layer = class_of(self.cfg.get('type'))
        if layer is None:
            raise ValueError(f'unknown convolution conv_cfg.type={self.cfg.get("type")!r}')
        self.cfg['type'] = layer
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
        bias: bool | None = None,
    ) -> nn.Module:
        cfg = dict(self.cfg)
        if self.scaled:
            cfg['gamma'] = gamma
        padding: int | str = dilation * (kernel_size - 1) // 2  # SAME, too, without a stride
        if self.padding == 'same' and stride > 1 and kernel_size > 1:
            padding = 'same'
            if self.plain:
                cfg['type'], padding = SameConv2d, 0
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        return build_conv_layer(cfg, *sizes, bias=self.bias if bias is None else bias)


class NFStem(nn.Module):
    """The convolutions (and max-pooling) in front of the first stage.

    Args:
        kind: A key of :data:`STEMS`.
        in_channels: Channels of the image.
        channels: Output channels.
        conv: Builder of the convolutions.
        act: Activation between the convolutions.
        gamma: Gain of the activation.
        first_gamma: Gain of the first convolution, which no activation feeds.
        bias: Whether the convolutions have a bias; None for the builder's choice.
    """

    def __init__(
        self,
        kind: str,
        in_channels: int,
        channels: int,
        conv: ConvBuilder,
        act: nn.Module | None = None,
        gamma: float = 1.0,
        first_gamma: float = 1.0,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        layers, self.has_pool = STEMS[check_choice('stem', kind, STEMS)]
        self.same = conv.padding == 'same'
        self.act = act if len(layers) > 1 else None
        self.gamma = 1.0 if conv.folds_gamma else gamma
        self.num_convs = len(layers)
        for number, (kernel, stride, width) in enumerate(layers, start=1):
            factor = first_gamma if number == 1 else gamma
            sizes = (in_channels, width or channels, kernel, stride)
            layer = conv(*sizes, gamma=factor, bias=bias)
            self.add_module(f'conv{number}', layer)
            in_channels = width or channels

    def conv_factors(self) -> dict[nn.Module, tuple[float, float]]:
        """See :func:`nf_plugins.fold`."""
        return {self.conv1: (1.0, 1.0), **dict.fromkeys(self.later_convs, (self.gamma, 1.0))}

    def drop_factors(self) -> None:
        self.gamma = 1.0

    @property
    def later_convs(self) -> list[nn.Module]:
        return [getattr(self, f'conv{number}') for number in range(2, self.num_convs + 1)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for conv in self.later_convs:
            x = conv(scaled(self.act(x), self.gamma))
        return self.pool(x) if self.has_pool else x

    def pool(self, x: Tensor) -> Tensor:
        """Max-pooling of 3x3 windows with stride 2."""
        if not self.same:
            return F.max_pool2d(x, 3, 2, 1)
        odd = x.shape[2] % 2, x.shape[3] % 2
        if all(isinstance(number, int) for number in odd):  # nothing in front of an even size
            return F.max_pool2d(x, 3, 2, odd, ceil_mode=True)
        return F.max_pool2d(pad_same(x, (3, 3), (2, 2), value=-math.inf), 3, 2)


def scaled(x: Tensor, gain: float) -> Tensor:
    """``gain * x``, without a multiplication where the gain is 1."""
    return x if gain == 1 else x * gain


class NFBlock(ResidualBlock):
    r"""The normalizer-free pre-activation bottleneck block.

    .. math:: x_{l+1} = \mathrm{shortcut} + \alpha\, s\, f(\gamma\, \mathrm{act}(x_l) / \beta_l)

    with the SkipInit gain :math:`s`; the shortcut is :math:`x_l`, or a convolution of
    :math:`\gamma\, \mathrm{act}(x_l) / \beta_l` where the shape changes. All factors are
    part of the standardized weight of a neighbouring convolution (:math:`\alpha s` of the
    gates, where the branch ends in squeeze-excite), so no activation is multiplied by them.

    Args:
        arch: The architecture.
        conv: Builder of the convolutions.
        act_cfg: Config of the activation.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        first: Whether it is the first block of the network.
        stride: Stride of the first 3x3 convolution.
        dilation: Dilation of the 3x3 convolutions.
        alpha: Scale of the branch.
        beta: Expected standard deviation of the input.
        has_theory: Whether the expectation holds: it needs ScaledWS and beta.
        skipinit: Start of the SkipInit gain; None leaves the gain out.
        zero_init: Start the gain of the last convolution at 0.
        drop_path_rate: Rate of stochastic depth.
        scale_by_keep: Rescale what stochastic depth keeps.
        deploy: Build the folded block.
        with_cp: Recompute in the backward pass.

    Attributes:
        fold_scale: Whether :math:`\alpha s` joins weights or gates; False keeps the end of
            the branch as the papers plot it, for :func:`nf_plugins.spp.analyze`.
        expected_var: Variance of the output that the method expects,
            :math:`\beta^2 + \alpha^2`, or :math:`1 + \alpha^2` after a transition; None
            without ``has_theory``.
    """

    fold_scale = True

    def __init__(
        self,
        arch: NFArch,
        conv: ConvBuilder,
        act_cfg: dict,
        in_channels: int,
        out_channels: int,
        first: bool = False,
        stride: int = 1,
        dilation: int = 1,
        alpha: float = 0.2,
        beta: float = 1.0,
        has_theory: bool = True,
        skipinit: float | None = 0.0,
        zero_init: bool = False,
        drop_path_rate: float = 0.0,
        scale_by_keep: bool = False,
        deploy: bool = False,
        with_cp: bool = False,
    ) -> None:
        super().__init__(with_cp)
        self.act, gamma = build_activation(act_cfg)
        self.inner_act, _ = build_activation(act_cfg)
        self.gamma = 1.0 if conv.folds_gamma else gamma
        self.beta = 1.0 if conv.folds_gamma else beta
        self.alpha = alpha
        mid, groups = arch.bottleneck(in_channels, out_channels, first)
        if mid < 1:
            raise ValueError(
                f'group_width={arch.group_width} leaves no channels to a bottleneck of a block '
                f'of {out_channels} channels'
            )
        self.conv1 = conv(in_channels, mid, 1, gamma=gamma / beta)
        self.conv2 = conv(mid, mid, 3, stride, dilation, groups, gamma=gamma)
        self.conv2b = None
        if arch.num_3x3 == 2:
            self.conv2b = conv(mid, mid, 3, 1, dilation, groups, gamma=gamma)
        self.conv3 = conv(mid, out_channels, 1, gamma=gamma)
        if zero_init and isinstance(self.conv3, ScaledWSConv2d):
            if self.conv3.gain is None:
                raise ValueError('zero_init_residual needs a gain: gain_init must not be None')
            self.conv3.gain_init = 0.0
            nn.init.zeros_(self.conv3.gain)
        self.attention_inside = arch.regnet
        self.attention = make_attention(arch, mid if arch.regnet else out_channels)
        self.drop_path = DropPath(drop_path_rate, scale_by_keep)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            pool = arch.downsample == 'avg' and stride > 1
            layers = OrderedDict()
            if pool:  # SAME padding: the border averages what is there
                layers['pool'] = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
            shortcut_stride = 1 if pool else stride
            layers['conv'] = conv(in_channels, out_channels, 1, shortcut_stride, gamma=gamma / beta)
            self.downsample = nn.Sequential(layers)
        self.output_var = (beta**2 if self.downsample is None else 1.0) + alpha**2
        self.expected_var = self.output_var if has_theory else None
        self.skipinit = skipinit
        self.skip_gain = None if skipinit is None else nn.Parameter(torch.tensor(float(skipinit)))
        if deploy and self.branch_ends_in_conv3:
            self.alpha, self.skip_gain = 1.0, None

    def reset_parameters(self) -> None:
        """Set the block's own parameter, the SkipInit gain, to its start."""
        if self.skip_gain is not None:
            nn.init.constant_(self.skip_gain, self.skipinit)

    def inner_forward(self, x: Tensor) -> Tensor:
        out = scaled(self.act(x), self.gamma / self.beta)
        shortcut = x if self.downsample is None else self.downsample(out)
        out = self.conv1(out)
        out = self.conv2(self._activate(out, self.conv1))
        if self.conv2b is not None:
            out = self.conv2b(self._activate(out, self.conv2))
        if self.attention is not None and self.attention_inside:
            out = self.attention(out)
        return self.add_branch(shortcut, self._activate(out, self.conv2b or self.conv2))

    def _activate(self, x: Tensor, conv: nn.Module) -> Tensor:
        """The activation after a convolution, times its gain."""
        return scaled(activate(self.inner_act, x, conv), self.gamma)

    def add_branch(self, shortcut: Tensor, x: Tensor) -> Tensor:
        r"""``shortcut + drop_path(alpha * s * f(x))``, where f is the end of the branch."""
        attention = None if self.branch_ends_in_conv3 else self.attention
        standardized = isinstance(self.conv3, StandardizedConv2d)
        scale, alpha = self.skip_gain, self.alpha
        folded = None  # into the gates, or the weight
        if self.fold_scale and (attention is not None or standardized):
            folded = self.conv3.weight.new_full((), alpha) if scale is None else alpha * scale
            scale, alpha = None, 1.0
        if attention is not None:
            out = attention(self.conv3(x), folded)
        else:
            out = self.conv3(x) if folded is None else self.conv3(x, folded)
        out = self.drop_path(out)
        if scale is not None:
            return torch.addcmul(shortcut, out, scale.to(out.dtype), value=alpha)
        if alpha != 1:
            return torch.add(shortcut, out, alpha=alpha)
        return add_shortcut(out, shortcut, may_overwrite(self.conv3, attention, self.drop_path))

    @property
    def branch_ends_in_conv3(self) -> bool:
        """Whether the scale of the branch can be folded into the last convolution."""
        return self.attention is None or self.attention_inside

    def conv_factors(self) -> dict[nn.Module, tuple[float, float | Tensor]]:
        """See :func:`nf_plugins.fold`."""
        later = [self.conv2, self.conv2b, self.conv3]
        factors = {conv: (self.gamma, 1.0) for conv in later if conv is not None}
        first = [self.conv1] if self.downsample is None else [self.conv1, self.downsample.conv]
        factors.update(dict.fromkeys(first, (self.gamma / self.beta, 1.0)))
        if self.branch_ends_in_conv3:
            scale = self.alpha if self.skip_gain is None else self.alpha * self.skip_gain
            factors[self.conv3] = (self.gamma, scale)
        return factors

    def drop_factors(self) -> None:
        self.gamma = self.beta = 1.0
        if self.branch_ends_in_conv3:
            self.alpha, self.skip_gain = 1.0, None

    def switch_to_deploy(self) -> None:
        """Fold the standardization and, where it is linear, the scale of the branch."""
        fold(self)


def make_attention(arch: NFArch, channels: int) -> nn.Module | None:
    """The channel attention of an architecture."""
    if arch.attention == 'se':
        return SqueezeExcite(channels, arch.hidden_channels(channels))
    return ECA(channels) if arch.attention == 'eca' else None


class NFBackbone(StagedBackbone):
    r"""A normalizer-free network, built from an :class:`NFArch`.

    Each block divides its input by the standard deviation that the method expects:
    1 after the stem; every block adds :math:`\alpha^2` to the variance, and a block
    with a convolution on its shortcut resets it to :math:`1 + \alpha^2`.

    The output is not activated: :class:`ReLUNeck` with the network's activation
    (``act_cfg=dict(type='GammaAct', act=...)``) follows.

    Args:
        arch: The architecture.
        in_channels: Channels of the image.
        alpha: Scale of the branches: each adds :math:`\alpha^2` to the variance.
        act_cfg: Config of the activation; it needs a known gain (see
            :data:`nf_plugins.functional.GAMMA`) or ``gamma``.
        conv_cfg: Config of the convolutions. With another than ScaledWS the
            activations are multiplied by their gain.
        eps_mode: 'clamp' or 'add', see :class:`ScaledWSConv2d`; None for its default.
        skipinit: A learnable gain of each branch. True starts it at 0 as in the
            official code, a number at that number; False leaves it out.
        zero_init_residual: Start the gain of the last convolution of each branch at 0
            (timm, which has no SkipInit gain).
        rescale_input: Divide the input of each block by :math:`\beta`.
        stem_bias: Give the stem's convolutions a bias.
        stem, attention, downsample, channel_divisor: Fields of :class:`NFArch` to
            override; None keeps the architecture's. ``attention=False`` removes it.
        drop_path_rate: Stochastic depth: block i of N drops with ``rate * i / N``.
        scale_by_keep: Rescale what stochastic depth keeps; the official code does not.
        padding: 'same' (TF style, as in the official code) or 'symmetric'.
        dilations: Dilation of each stage.
        out_indices: Stages whose outputs are returned; the final convolution, where
            there is one, counts as stage 4. None for the last.
        frozen_stages: Stages that are not trained, the stem being stage 0; -1 for none.
        deploy: Build the network that :func:`nf_plugins.fold` makes.
        with_cp: Recompute the blocks in the backward pass.
        init_cfg: mm initialisation config. The layers initialise themselves.
    """

    def __init__(
        self,
        arch: NFArch,
        in_channels: int = 3,
        alpha: float = 0.2,
        act_cfg: dict = dict(type='ReLU'),
        conv_cfg: dict | None = dict(type='nf_plugins.ScaledWS'),
        eps_mode: str | None = None,
        skipinit: bool | float = True,
        zero_init_residual: bool = False,
        rescale_input: bool = True,
        stem_bias: bool = True,
        stem: str | None = None,
        attention: str | bool | None = None,
        downsample: str | None = None,
        channel_divisor: int | None = None,
        drop_path_rate: float = 0.0,
        scale_by_keep: bool = False,
        padding: str = 'same',
        dilations: Sequence[int] = (1, 1, 1, 1),
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        deploy: bool = False,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        overrides = dict(
            stem=stem, attention=attention, downsample=downsample, channel_divisor=channel_divisor
        )
        overrides = {name: value for name, value in overrides.items() if value is not None}
        if attention is False:
            overrides['attention'] = None
        arch = override_arch(arch, **overrides)
        check_integer('in_channels', in_channels)
        dilations = check_integers('dilations', dilations, 4)
        check_number('alpha', alpha, 'a positive number')
        check_number('drop_path_rate', drop_path_rate, 'in [0, 1)')
        num_stages = 4 if arch.final_ratio is None else 5
        if out_indices is None:
            out_indices = (num_stages - 1,)
        super().__init__(num_stages, out_indices, frozen_stages, init_cfg=init_cfg)
        if eps_mode is not None:
            if conv_cfg is None:
                raise ValueError(f'eps_mode={eps_mode!r} needs conv_cfg=dict(type="ScaledWS")')
            conv_cfg = {**check_config('conv_cfg', conv_cfg), 'eps_mode': eps_mode}
        conv = ConvBuilder(conv_cfg, padding, deploy)
        self.arch = arch
        channels, widths = arch.first_channels, arch.stage_channels
        act, gamma = build_activation(act_cfg)
        free_gamma = gamma if arch.gamma_at == 'conv' else 1.0
        self.stem = NFStem(
            arch.stem, in_channels, channels, conv, act, gamma, free_gamma, bias=stem_bias
        )

        if skipinit is None or isinstance(skipinit, bool):
            gain_init = 0.0 if skipinit else None
        else:
            gain_init = check_number('skipinit', skipinit)
        expected_var = 1.0
        depths = arch.depths

        def make_block(stage: int, index: int) -> NFBlock:
            nonlocal channels, expected_var
            position = sum(depths[:stage]) + index
            block = NFBlock(
                arch,
                conv,
                act_cfg,
                channels,
                widths[stage],
                first=position == 0,
                stride=arch.strides[stage] if index == 0 else 1,
                dilation=dilations[stage],
                alpha=alpha,
                beta=math.sqrt(expected_var) if rescale_input else 1.0,
                has_theory=rescale_input and conv.folds_gamma,
                skipinit=gain_init,
                zero_init=zero_init_residual,
                drop_path_rate=drop_path_rate * position / sum(depths),
                scale_by_keep=scale_by_keep,
                deploy=deploy,
                with_cp=with_cp,
            )
            channels, expected_var = widths[stage], block.output_var
            return block

        self.make_stages(depths, make_block)
        if arch.final_ratio is not None:
            self.final_conv = conv(channels, arch.final_channels, 1, gamma=free_gamma)
            channels = arch.final_channels
        self.feat_dim = channels
        self.freeze_stages()

    @property
    def stages(self) -> list[nn.Module]:
        stages = [getattr(self, f'layer{i}') for i in range(1, 5)]
        return stages if self.arch.final_ratio is None else [*stages, self.final_conv]

    def stem_modules(self) -> list[nn.Module]:
        return [self.stem]

    def forward_stem(self, x: Tensor) -> Tensor:
        return self.stem(x)
