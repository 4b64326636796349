"""Base of all backbones: stages, frozen stages, layer depths, deploy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nf_plugins.layers import fold

Block = TypeVar('Block', bound=nn.Module)


@dataclass(frozen=True)
class BlockPlace:
    """Place of a block in its network, and the shape that results from it.

    Args:
        index: Number of blocks before it in the whole network.
        num_blocks: Number of blocks of the whole network.
        index_in_stage: Number of blocks before it in its stage.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride.
        dilation: Dilation.
    """

    index: int
    num_blocks: int
    index_in_stage: int
    in_channels: int
    out_channels: int
    stride: int
    dilation: int

    @property
    def is_transition(self) -> bool:
        """Whether input and output differ in shape, so that the shortcut is a projection."""
        return self.stride > 1 or self.in_channels != self.out_channels

    def drop_path_rate(self, rate: float) -> float:
        """Compute the rate of drop-path of this block, ``rate * index / num_blocks``."""
        return rate * self.index / self.num_blocks


class StagedBackbone(BaseModule):
    """Backbone with a stem and the stages ``layer1`` to ``layerN``, with the usual mm options.

    Args:
        num_stages: Number of stages.
        out_indices: Stages whose outputs are returned, counted from 0.
        frozen_stages: Number of the last frozen stage; the stem is stage 0. -1 freezes nothing.
        norm_eval: Keep batch norm layers in evaluation mode.
        init_cfg: mm initialisation config.
    """

    def __init__(
        self,
        num_stages: int = 4,
        out_indices: Sequence[int] = (3,),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if isinstance(out_indices, int):
            out_indices = (out_indices,)
        if (
            not isinstance(out_indices, Sequence)
            or not out_indices
            or not all(isinstance(i, int) and 0 <= i < num_stages for i in out_indices)
        ):
            raise ValueError(f'out_indices must be in 0..{num_stages - 1}, got {out_indices!r}')
        if not isinstance(frozen_stages, int) or not -1 <= frozen_stages <= num_stages:
            raise ValueError(f'frozen_stages must be in -1..{num_stages}, got {frozen_stages!r}')
        self.num_stages = num_stages
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval

    def stem_modules(self) -> list[nn.Module]:
        """Return the modules that ``frozen_stages=0`` freezes."""
        raise NotImplementedError

    def forward_stem(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def stages(self) -> list[nn.Module]:
        return [getattr(self, f'layer{i + 1}') for i in range(self.num_stages)]

    def make_stages(
        self,
        make_block: Callable[[BlockPlace, Block | None], Block],
        in_channels: int,
        depths: Sequence[int],
        widths: Sequence[int],
        strides: Sequence[int],
        dilations: Sequence[int],
    ) -> None:
        """Add the stages, and set ``feat_dim`` to the channels of the last one.

        Args:
            make_block: Function that makes a block from its place and the block before it (None
                for the first block).
            in_channels: Channels of the stem.
            depths: Blocks of each stage.
            widths: Output channels of each stage.
            strides: Stride of the first block of each stage.
            dilations: Dilation of the blocks of each stage.
        """
        index = 0
        block: Block | None = None
        for stage, depth in enumerate(depths):
            blocks = []
            for index_in_stage in range(depth):
                shape = in_channels, widths[stage], 1 if index_in_stage else strides[stage]
                place = BlockPlace(index, sum(depths), index_in_stage, *shape, dilations[stage])
                block = make_block(place, block)
                blocks.append(block)
                in_channels, index = widths[stage], index + 1
            self.add_module(f'layer{stage + 1}', nn.Sequential(*blocks))
        self.feat_dim = in_channels

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.forward_stem(x)
        outs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the depth of a parameter's layer, for learning rates that differ by layer.

        The stem is layer 0, and each block is one layer. Everything after the backbone is the
        last layer.

        Args:
            param_name: Name of the parameter in the model.
            prefix: Prefix of the names of this backbone's parameters in the model.

        Returns:
            The layer, and the number of layers.
        """
        starts = [1]
        for stage in self.stages:
            starts.append(starts[-1] + (len(stage) if isinstance(stage, nn.Sequential) else 1))
        last = starts[-1]
        if not param_name.startswith(prefix):
            return last, last + 1
        path = param_name.removeprefix(prefix)
        for start, (name, stage) in zip(starts, self._named_stages()):
            if path.startswith(f'{name}.'):
                block = path.split('.')[1] if isinstance(stage, nn.Sequential) else 0
                return start + int(block), last + 1
        return 0, last + 1

    def _named_stages(self) -> list[tuple[str, nn.Module]]:
        return [(name, m) for name, m in self.named_children() if m in self.stages]

    def freeze_stages(self) -> None:
        """Freeze the stem and the stages up to ``frozen_stages``; constructors call this last."""
        frozen = [] if self.frozen_stages < 0 else self.stem_modules()
        for module in [*frozen, *self.stages[: max(self.frozen_stages, 0)]]:
            module.eval()
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> StagedBackbone:
        super().train(mode)
        self.freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def switch_to_deploy(self) -> None:
        """Replace the standardized convolutions by plain ones, see :func:`nf_plugins.fold`."""
        fold(self)
