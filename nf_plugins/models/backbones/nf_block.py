"""Block of all normalizer-free networks."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from nf_plugins.layers import (
    ECA,
    DropPath,
    ScaledWSConv2d,
    SqueezeExcite,
    StandardizedConv2d,
    build_activation,
    fold,
)
from nf_plugins.utils.checks import check_number

from .conv_builder import ConvBuilder
from .nf_arch import NFArch
from .nf_stem import scaled
from .residual_block import ResidualBlock, activate, add_shortcut, may_overwrite
from .staged import BlockPlace


@dataclass(frozen=True)
class NFBlockOptions:
    r"""Options that all blocks of a normalizer-free network share.

    Args:
        act_cfg: Config of the activation. If its gain is not in
            :data:`nf_plugins.functional.GAMMA`, the config needs ``gamma``.
        alpha: Scale of the branches; each branch adds :math:`\alpha^2` to the variance.
        skipinit: Whether each branch has a SkipInit gain. True starts it at 0, as in the
            official code. A number is its initial value. False: there is none.
        zero_init_residual: Start the gain of the last convolution of each branch at 0, as
            timm does, which has no SkipInit gain.
        rescale_input: Divide the input of each block by :math:`\beta`.
        drop_path_rate: Rate of drop-path: ``rate * i / N`` for block i of N.
        scale_by_keep: Rescale the branches that drop-path keeps. The official code does not.
        deploy: Build the network as :func:`nf_plugins.fold` would return it.
        with_cp: Recompute the blocks in the backward pass instead of keeping their activations.
    """

    act_cfg: dict = field(default_factory=lambda: dict(type='ReLU'))
    alpha: float = 0.2
    skipinit: bool | float | None = True
    zero_init_residual: bool = False
    rescale_input: bool = True
    drop_path_rate: float = 0.0
    scale_by_keep: bool = False
    deploy: bool = False
    with_cp: bool = False

    def __post_init__(self) -> None:
        check_number('alpha', self.alpha, 'a positive number')
        check_number('drop_path_rate', self.drop_path_rate, 'in [0, 1)')
        if self.skipinit is not None and not isinstance(self.skipinit, bool):
            check_number('skipinit', self.skipinit)

    @property
    def skip_gain_start(self) -> float | None:
        """Initial value of the SkipInit gain; None if there is none."""
        if self.skipinit is None or self.skipinit is False:
            return None
        return 0.0 if self.skipinit is True else float(self.skipinit)


class NFBlock(ResidualBlock):
    r"""Normalizer-free pre-activation bottleneck block.

    .. math:: x_{l+1} = \mathrm{shortcut} + \alpha\, s\, f(\gamma\, \mathrm{act}(x_l) / \beta_l)

    with the SkipInit gain :math:`s`. The shortcut is :math:`x_l`, or a convolution of
    :math:`\gamma\, \mathrm{act}(x_l) / \beta_l` if the shape changes. The standardized weights of
    the convolutions contain all these factors. If the branch ends in squeeze-excite, its gates
    contain :math:`\alpha s`. So no activation is multiplied by a factor.

    Args:
        arch: The architecture.
        options: The options of all blocks of the network.
        place: The place of the block.
        conv: Builder of the convolutions.
        input_var: Variance of the input that the method expects.

    Attributes:
        fold_scale: Whether the weights (or gates) at the end of the branch contain
            :math:`\alpha s`. If False, it is applied after the branch.
            :func:`nf_plugins.spp.analyze` sets it to False, so that it measures the branch end
            before this factor, as in the papers' plots.
        output_var: Variance of the output that the method expects,
            :math:`\beta^2 + \alpha^2`, or :math:`1 + \alpha^2` for a transition.
        expected_var: Equal to ``output_var``, or None if the expectation does not hold: it needs
            ScaledWS and beta.
    """

    fold_scale = True
    downsample: nn.Sequential | None

    def __init__(
        self,
        arch: NFArch,
        options: NFBlockOptions,
        place: BlockPlace,
        conv: ConvBuilder,
        input_var: float = 1.0,
    ) -> None:
        super().__init__(options.with_cp)
        self.act, gamma = build_activation(options.act_cfg)
        self.inner_act, _ = build_activation(options.act_cfg)
        beta = math.sqrt(input_var) if options.rescale_input else 1.0
        self.gamma = 1.0 if conv.folds_gamma else gamma
        self.beta = 1.0 if conv.folds_gamma else beta
        self.alpha = options.alpha
        self._add_branch_layers(arch, place, conv, gamma, beta)
        if options.zero_init_residual:
            self._start_last_gain_at_zero()
        self.drop_path = DropPath(
            place.drop_path_rate(options.drop_path_rate), options.scale_by_keep
        )
        self.downsample = None
        if place.is_transition:
            self.downsample = make_shortcut(arch, place, conv, gamma / beta)
        shortcut_var = beta**2 if self.downsample is None else 1.0
        self.output_var = shortcut_var + options.alpha**2
        has_theory = options.rescale_input and conv.folds_gamma
        self.expected_var = self.output_var if has_theory else None
        self.skipinit = start = options.skip_gain_start
        self.skip_gain = None if start is None else nn.Parameter(torch.tensor(start))
        if options.deploy and self.branch_ends_in_conv3:
            self.alpha, self.skip_gain = 1.0, None

    def _add_branch_layers(
        self, arch: NFArch, place: BlockPlace, conv: ConvBuilder, gamma: float, beta: float
    ) -> None:
        out_channels = place.out_channels
        mid, groups = arch.bottleneck(place.in_channels, out_channels, place.index == 0)
        if mid < 1:
            raise ValueError(
                f'group_width={arch.group_width} leaves no channels to a bottleneck of a block '
                f'of {out_channels} channels'
            )
        self.conv1 = conv(place.in_channels, mid, 1, gamma=gamma / beta)
        self.conv2 = conv(mid, mid, 3, place.stride, place.dilation, groups, gamma=gamma)
        self.conv2b = None
        if arch.num_3x3 == 2:
            self.conv2b = conv(mid, mid, 3, 1, place.dilation, groups, gamma=gamma)
        self.conv3 = conv(mid, out_channels, 1, gamma=gamma)
        self.attention_inside = arch.regnet
        self.attention = make_attention(arch, mid if arch.regnet else out_channels)

    def _start_last_gain_at_zero(self) -> None:
        if isinstance(self.conv3, ScaledWSConv2d):
            if self.conv3.gain is None:
                raise ValueError('zero_init_residual needs a gain: gain_init must not be None')
            self.conv3.gain_init = 0.0
            nn.init.zeros_(self.conv3.gain)

    def reset_parameters(self) -> None:
        """Set the block's own parameter, the SkipInit gain, to its initial value."""
        if self.skip_gain is not None and self.skipinit is not None:
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
        """Apply the activation after a convolution, and its gain."""
        return scaled(activate(self.inner_act, x, conv), self.gamma)

    def add_branch(self, shortcut: Tensor, x: Tensor) -> Tensor:
        r"""Compute ``shortcut + drop_path(alpha * s * f(x))``, where f is the end of the branch."""
        attention = None if self.branch_ends_in_conv3 else self.attention
        folds = attention is not None or isinstance(self.conv3, StandardizedConv2d)
        branch_scale: tuple[Tensor, ...]
        if self.fold_scale and folds:  # the weight of conv3, or the gates, contain alpha * s
            branch_scale, alpha, skip_gain = (self._branch_scale(),), 1.0, None
        else:
            branch_scale, alpha, skip_gain = (), self.alpha, self.skip_gain
        if attention is None:
            out = self.conv3(x, *branch_scale)
        else:
            out = attention(self.conv3(x), *branch_scale)
        out = self.drop_path(out)
        if skip_gain is not None:
            return torch.addcmul(shortcut, out, skip_gain.to(out.dtype), value=alpha)
        if alpha != 1:
            return torch.add(shortcut, out, alpha=alpha)
        return add_shortcut(out, shortcut, may_overwrite(self.conv3, attention, self.drop_path))

    def _branch_scale(self) -> Tensor:
        """Compute ``alpha * s``, a scalar."""
        if self.skip_gain is None:
            return cast(Tensor, self.conv3.weight).new_full((), self.alpha)
        return self.alpha * self.skip_gain

    @property
    def branch_ends_in_conv3(self) -> bool:
        """Whether the scale of the branch can be folded into the last convolution."""
        return self.attention is None or self.attention_inside

    def conv_factors(self) -> dict[nn.Module, tuple[float, float | Tensor]]:
        """Return the factors of each convolution, see :func:`nf_plugins.fold`."""
        later = [self.conv2, self.conv2b, self.conv3]
        factors: dict[nn.Module, tuple[float, float | Tensor]] = {
            conv: (self.gamma, 1.0) for conv in later if conv is not None
        }
        first = [self.conv1] if self.downsample is None else [self.conv1, self.downsample[-1]]
        factors.update(dict.fromkeys(first, (self.gamma / self.beta, 1.0)))
        if self.branch_ends_in_conv3:
            scale = self.alpha if self.skip_gain is None else self.alpha * self.skip_gain
            factors[self.conv3] = (self.gamma, scale)
        return factors

    def drop_factors(self) -> None:
        """Stop applying the factors, see :func:`nf_plugins.fold`."""
        self.gamma = self.beta = 1.0
        if self.branch_ends_in_conv3:
            self.alpha, self.skip_gain = 1.0, None

    def switch_to_deploy(self) -> None:
        """Fold the standardization and, if the branch ends in a convolution, its scale."""
        fold(self)


def make_attention(arch: NFArch, channels: int) -> nn.Module | None:
    """Build the channel attention of an architecture."""
    if arch.attention == 'se':
        return SqueezeExcite(channels, arch.hidden_channels(channels))
    return ECA(channels) if arch.attention == 'eca' else None


def make_shortcut(
    arch: NFArch, place: BlockPlace, conv: ConvBuilder, gamma: float
) -> nn.Sequential:
    """Build the shortcut of a transition: a convolution, after average pooling in some families.

    Args:
        arch: The architecture.
        place: The place of the block.
        conv: Builder of the convolution.
        gamma: Factor of its input.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    stride = place.stride
    if arch.downsample == 'avg' and stride > 1:
        # SAME padding: at the border, the average is taken over existing positions only.
        layers['pool'] = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
        stride = 1
    layers['conv'] = conv(place.in_channels, place.out_channels, 1, stride, gamma=gamma)
    return nn.Sequential(layers)
