"""Neck for backbones whose output is not activated."""

from __future__ import annotations

from collections.abc import Sequence

from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from nf_plugins.registry import MODELS
from nf_plugins.utils.checks import check_config, check_integer, check_number


@MODELS.register_module()
class ReLUNeck(BaseModule):
    """Neck of an optional norm, an activation and global average pooling.

    The pre-activation networks of this package end with a residual sum. After it, PWS networks
    need a norm and a ReLU. Normalizer-free networks need no norm; they need their activation with
    its gain: ``act_cfg=dict(type='GammaAct', act='ReLU')``.

    Args:
        in_channels: Channels of the input, or of each input. Only the norm needs it.
        norm_cfg: Config of the norm layer, or None.
        act_cfg: Config of the activation.
        avgpool: Average over the positions.
        drop_rate: Rate of the dropout at the end.
        init_cfg: mm initialisation config.

    Raises:
        ValueError: There is a norm but no ``in_channels``, or the number of inputs is different
            from that of ``in_channels``.

    Shape:
        - Input: ``(N, C, H, W)``, or a tuple of these, such as the outputs of all stages.
        - Output: ``(N, C)`` with ``avgpool``, else the shape of the input; a tuple for a tuple.

    Source: the PWSConv repository.

    Example:
        >>> import torch
        >>> ReLUNeck(8)((torch.randn(2, 8, 4, 4),))[0].shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        in_channels: int | Sequence[int] | None = None,
        norm_cfg: dict | None = None,
        act_cfg: dict = dict(type='ReLU'),
        avgpool: bool = True,
        drop_rate: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        sizes: Sequence[object] = ()  # checked below
        if isinstance(in_channels, (list, tuple)):
            sizes = in_channels
        elif in_channels is not None:
            sizes = [in_channels]
        for size in sizes:
            check_integer('in_channels', size)
        check_number('drop_rate', drop_rate, 'in [0, 1)')
        self.norm: nn.Module | None = None
        if norm_cfg is not None:
            check_config('norm_cfg', norm_cfg)
            if not sizes:
                raise ValueError(f'norm_cfg={norm_cfg!r} needs in_channels, got {in_channels!r}')
            norms = nn.ModuleList(build_norm_layer(norm_cfg, size)[1] for size in sizes)
            self.norm = norms if isinstance(in_channels, (list, tuple)) else norms[0]
        self.act = build_activation_layer(check_config('act_cfg', act_cfg))
        self.avgpool = avgpool
        self.dropout = nn.Dropout(drop_rate)

    def forward(self, inputs: Tensor | Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
        if isinstance(inputs, Tensor):
            return self.forward((inputs,))[0]
        norms = [*self.norm] if isinstance(self.norm, nn.ModuleList) else [self.norm] * len(inputs)
        if len(norms) != len(inputs):
            raise ValueError(f'in_channels has {len(norms)} values, got {len(inputs)} inputs')
        return tuple(map(self.finish, inputs, norms))

    def finish(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        x = self.act(x if norm is None else norm(x))
        return self.dropout(x.mean(dim=(2, 3)) if self.avgpool else x)
