"""What all backbones here share: stages, frozen stages, checkpointing, deploy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from nf_plugins.layers import fold


def may_overwrite(conv: nn.Module, *later: nn.Module | None) -> bool:
    """Whether nobody but the next operation gets to see what a convolution returns.

    Args:
        conv: The convolution.
        *later: Modules that its output went through since, and may have left as it was.
    """
    if torch.compiler.is_compiling() or not isinstance(conv, nn.Conv2d):
        return False
    return not any(map(is_watched, (conv, *later)))


def is_watched(module: nn.Module | None) -> bool:
    """Whether a hook sees the inputs, outputs or gradients of a module."""
    every = torch.nn.modules.module
    return module is not None and bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or every._global_forward_pre_hooks
        or every._global_forward_hooks
        or every._global_backward_hooks
        or every._global_backward_pre_hooks
    )


def activate(act: nn.Module, x: Tensor, conv: nn.Module | None = None) -> Tensor:
    """``act(x)``, a ReLU in the memory of ``x`` where nobody else sees that.

    Args:
        act: The activation.
        x: Its input: what ``conv`` returned, or, without ``conv``, a new tensor.
        conv: The convolution.
    """
    unseen = not torch.compiler.is_compiling() if conv is None else may_overwrite(conv)
    # Not with torch.fx's proxies: whoever has a graph may ask for any value in it.
    if unseen and type(act) is nn.ReLU and isinstance(x, Tensor) and not is_watched(act):
        return torch.relu_(x)
    if torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling():
        # Exported: quantizers take the calls of one module for one operation.
        return act.forward(x)
    return act(x)


def add_shortcut(branch: Tensor, shortcut: Tensor, inplace: bool) -> Tensor:
    """The sum, in the memory of the branch where that may be overwritten."""
    inplace = inplace and isinstance(branch, Tensor) and branch.dtype == shortcut.dtype
    return branch.add_(shortcut) if inplace else branch + shortcut


class ResidualBlock(BaseModule):
    """A block ``x -> shortcut(x) + drop_path(branch(x))``, up to constants.

    Subclasses write :meth:`inner_forward` and have ``downsample``, the module on the
    shortcut, or None where that is the identity. The branch enters the addition
    without its constant factors, which is where signal propagation is measured.

    Args:
        with_cp: Recompute the block in the backward pass instead of keeping its
            activations.
    """

    downsample: nn.Module | None

    def __init__(self, with_cp: bool = False, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        self.with_cp = with_cp

    def inner_forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        recompute = self.with_cp and torch.is_grad_enabled() and isinstance(x, Tensor)
        if recompute and x.requires_grad:
            return checkpoint(self.inner_forward, x, use_reentrant=False)
        return self.inner_forward(x)


class StagedBackbone(BaseModule):
    """A stem and stages ``layer1`` ... ``layerN``, with the usual mm options.

    Args:
        num_stages: Stages.
        out_indices: Stages whose outputs are returned, from 0.
        frozen_stages: Stages that are not trained, the stem being stage 0; -1 for
            none.
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
        """The modules that ``frozen_stages=0`` freezes."""
        raise NotImplementedError

    def forward_stem(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def stages(self) -> list[nn.Module]:
        return [getattr(self, f'layer{i + 1}') for i in range(self.num_stages)]

    def make_stages(self, depths: Sequence[int], make_block: Callable[[int, int], nn.Module]):
        """Add the stages, ``make_block(stage, index_in_stage)`` at a time."""
        for stage, depth in enumerate(depths):
            blocks = [make_block(stage, index) for index in range(depth)]
            self.add_module(f'layer{stage + 1}', nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.forward_stem(x)
        outs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Find the layer of a parameter, for learning rates that differ by layer.

        The stem is layer 0, each block is the next one, and what follows the backbone is
        the last one.

        Args:
            param_name: Name of the parameter in the model.
            prefix: What the names of this backbone's parameters begin with.

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
        """Freeze what ``frozen_stages`` says; a constructor calls it last."""
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
        """Make plain convolutions of the standardized ones, see :func:`nf_plugins.fold`."""
        fold(self)
