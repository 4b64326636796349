"""Builder of the convolutions of a network."""

from __future__ import annotations

from typing import Any

from mmcv.cnn import build_conv_layer
from torch import nn

from nf_plugins.layers import SameConv2d, ScaledWSConv2d
from nf_plugins.layers.start import start, truncated_normal
from nf_plugins.registry import class_of
from nf_plugins.utils.checks import check_choice, check_config


class ConvBuilder:
    """Builder of the convolutions of a network, with one config and one padding style.

    Args:
        conv_cfg: mm config of the convolution; None for a plain one.
        padding: 'same' (TF style) or 'symmetric' (``dilation * (kernel - 1) / 2``).
        deploy: Build plain convolutions; their weights contain the constant factors.
        bias: Whether the convolutions have a bias; None for the default of their class.
        as_haiku: Initialise plain convolutions as DeepMind's library Haiku does: a Gaussian with
            the variance 1 / fan-in, without the values beyond two standard deviations, and a
            zero bias. PyTorch's have a third of this variance.

    Attributes:
        folds_gamma: Whether the weight of a convolution contains the factors of its input.
    """

    def __init__(
        self,
        conv_cfg: dict | None,
        padding: str = 'same',
        deploy: bool = False,
        bias: bool | None = True,
        as_haiku: bool = False,
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
        self.as_haiku = as_haiku and self.plain and not deploy

    def without(self, option: str) -> ConvBuilder:
        """Return a builder whose config does not have an option."""
        cfg = {name: value for name, value in self.cfg.items() if name != option}
        return ConvBuilder(cfg, self.padding, bias=self.bias)

    def __call__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        gamma: float | None = None,
        bias: bool | None = None,
    ) -> nn.Module:
        """Build a convolution.

        Args:
            in_channels: Channels of the input.
            out_channels: Channels of the output.
            kernel_size: Size of the kernel.
            stride: Stride.
            dilation: Dilation.
            groups: Groups of channels.
            gamma: Factor of the input of a :class:`ScaledWSConv2d`; None takes the config's.
            bias: Whether it has a bias; None takes the builder's ``bias``.
        """
        cfg: dict[str, Any] = dict(self.cfg)
        if self.scaled and gamma is not None:
            cfg['gamma'] = gamma
        bias = self.bias if bias is None else bias
        if bias is not None:
            cfg['bias'] = bias
        # Without a stride this is also SAME padding.
        padding: int | str = dilation * (kernel_size - 1) // 2
        if self.padding == 'same' and stride > 1 and kernel_size > 1:
            padding = 'same'
            if self.plain:
                cfg['type'], padding = SameConv2d, 0
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        conv = build_conv_layer(cfg, *sizes)
        if self.as_haiku:
            start(conv, truncated_normal, std=conv.weight[0].numel() ** -0.5)
        return conv
