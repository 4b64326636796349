"""Backbone of all normalizer-free families."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nf_plugins.layers import build_activation
from nf_plugins.utils.checks import check_config, check_integer, check_integers

from .conv_builder import ConvBuilder
from .nf_arch import NFArch, override_arch
from .nf_block import NFBlock, NFBlockOptions
from .nf_stem import NFStem
from .staged import BlockPlace, StagedBackbone


class NFBackbone(StagedBackbone):
    r"""Normalizer-free network, built from an :class:`NFArch`.

    Each block divides its input by the standard deviation that the method expects. The expected
    variance is 1 after the stem. Every block adds :math:`\alpha^2` to it, and a transition resets
    it to :math:`1 + \alpha^2`.

    The output is not activated. Add a :class:`ReLUNeck` with the network's activation after it
    (``act_cfg=dict(type='GammaAct', act=...)``).

    Args:
        arch: The architecture.
        in_channels: Channels of the image.
        conv_cfg: Config of the convolutions. If they are not ScaledWS, the activations are
            multiplied by their gain.
        eps_mode: 'clamp' or 'add', see :class:`ScaledWSConv2d`; None takes its default.
        padding: 'same' (TF style, as in the official code) or 'symmetric'.
        stem_bias: Give the stem's convolutions a bias.
        stem, attention, downsample, channel_divisor: Fields of :class:`NFArch` to
            override; None keeps the architecture's. ``attention=False`` removes it.
        dilations: Dilation of each stage.
        out_indices: Stages whose outputs are returned. The final convolution, if there is one,
            counts as stage 4. None: the last one.
        frozen_stages: Number of the last frozen stage; the stem is stage 0. -1 freezes nothing.
        init_cfg: mm initialisation config. The layers initialise themselves without it.
        **block_options: ``act_cfg``, ``alpha``, ``skipinit``, ``zero_init_residual``,
            ``rescale_input``, ``drop_path_rate``, ``scale_by_keep``, ``deploy`` and
            ``with_cp``, see :class:`NFBlockOptions`.
    """

    def __init__(
        self,
        arch: NFArch,
        in_channels: int = 3,
        conv_cfg: dict | None = dict(type='nf_plugins.ScaledWS'),
        eps_mode: str | None = None,
        padding: str = 'same',
        stem_bias: bool = True,
        stem: str | None = None,
        attention: str | bool | None = None,
        downsample: str | None = None,
        channel_divisor: int | None = None,
        dilations: Sequence[int] = (1, 1, 1, 1),
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        init_cfg: dict | None = None,
        **block_options: Any,
    ) -> None:
        for name in block_options.keys() - NFBlockOptions.__dataclass_fields__.keys():
            raise TypeError(f'{type(self).__name__} got an unexpected keyword argument {name!r}')
        options = NFBlockOptions(**block_options)
        overrides = dict(
            stem=stem, attention=attention, downsample=downsample, channel_divisor=channel_divisor
        )
        overrides = {name: value for name, value in overrides.items() if value is not None}
        if attention is False:
            overrides['attention'] = None
        arch = override_arch(arch, **overrides)
        check_integer('in_channels', in_channels)
        dilations = check_integers('dilations', dilations, 4)
        num_stages = 4 if arch.final_ratio is None else 5
        if out_indices is None:
            out_indices = (num_stages - 1,)
        super().__init__(num_stages, out_indices, frozen_stages, init_cfg=init_cfg)
        if eps_mode is not None:
            if conv_cfg is None:
                raise ValueError(f'eps_mode={eps_mode!r} needs conv_cfg=dict(type="ScaledWS")')
            conv_cfg = {**check_config('conv_cfg', conv_cfg), 'eps_mode': eps_mode}
        conv = ConvBuilder(conv_cfg, padding, options.deploy, as_haiku=True)
        self.arch = arch
        channels = arch.first_channels
        act, gamma = build_activation(options.act_cfg)
        free_gamma = gamma if arch.gamma_at == 'conv' else 1.0
        self.stem = NFStem(
            arch.stem, in_channels, channels, conv, act, gamma, free_gamma, bias=stem_bias
        )

        def make_block(place: BlockPlace, previous: NFBlock | None) -> NFBlock:
            input_var = 1.0 if previous is None else previous.output_var
            return NFBlock(arch, options, place, conv, input_var)

        shape = arch.depths, arch.stage_channels, arch.strides, dilations
        self.make_stages(make_block, channels, *shape)
        if arch.final_ratio is not None:
            self.final_conv = conv(self.feat_dim, arch.final_channels, 1, gamma=free_gamma)
            self.feat_dim = arch.final_channels
        self.freeze_stages()

    @property
    def stages(self) -> list[nn.Module]:
        stages = [getattr(self, f'layer{i}') for i in range(1, 5)]
        return stages if self.arch.final_ratio is None else [*stages, self.final_conv]

    def stem_modules(self) -> list[nn.Module]:
        return [self.stem]

    def forward_stem(self, x: Tensor) -> Tensor:
        return self.stem(x)
