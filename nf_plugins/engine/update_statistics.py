"""Norms of gradients, weights and updates of the blocks of a network, and factors of its layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nf_plugins.layers import Derf, DyT


class UpdateStatistics:
    """Measures one step of an optimizer: gradient norm, weight norm, update-to-weight ratio.

    Nothing is changed, and no random number drawn. The weights are copied for the time of one
    step, and only for the steps that are watched.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        >>> statistics = UpdateStatistics()
        >>> statistics.watch(net, optimizer)
        >>> net(torch.ones(1, 2)).sum().backward()
        >>> _ = optimizer.step()
        >>> sorted(statistics.of_blocks(['0'])['0'])
        ['grad_norm', 'update_ratio', 'weight_norm']
    """

    def __init__(self) -> None:
        self._model: nn.Module | None = None
        self._before: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._hooks: list[Any] = []

    def watch(self, model: nn.Module, optimizers: Any) -> None:
        """Measure the next step.

        Args:
            model: The network.
            optimizers: An optimizer, mmengine's wrapper of one, or of several.
        """
        self.forget()
        self._model = model
        for optimizer in _optimizers(optimizers):
            self._hooks.append(optimizer.register_step_pre_hook(self._note))

    def _note(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        own = {id(p) for group in optimizer.param_groups for p in group['params']}
        for name, p in self._model.named_parameters() if self._model is not None else ():
            if id(p) in own and name not in self._before and p.grad is not None:
                if p.grad.is_sparse:
                    continue
                self._before[name] = p.detach().clone()
                self._gradients[name] = torch.linalg.vector_norm(p.grad.detach().float())

    def of_blocks(self, names: Iterable[str]) -> dict[str, dict[str, float]]:
        """Return the statistics of the parameters of each block, and forget them.

        Args:
            names: Module paths of the blocks.
        """
        now = dict(self._model.named_parameters()) if self._model is not None else {}
        rows, places = [], []
        for block in dict.fromkeys(names):
            own = [n for n in self._before if block and n.startswith(f'{block}.')]
            if own:
                weights = [torch.linalg.vector_norm(self._before[n].float()) for n in own]
                steps = [now[n].detach() - self._before[n] for n in own]
                changes = [torch.linalg.vector_norm(step.float()) for step in steps]
                gradients = [self._gradients[n] for n in own]
                rows += [_total(gradients), _total(weights), _total(changes)]
                places.append(block)
        values = torch.stack(rows).tolist() if rows else []
        self.forget()
        return {
            block: dict(
                grad_norm=gradient, weight_norm=weight, update_ratio=change / max(weight, 1e-30)
            )
            for block, gradient, weight, change in zip(
                places, values[::3], values[1::3], values[2::3]
            )
        }

    def forget(self) -> None:
        """Drop what was noted, and watch no step any more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._before, self._gradients, self._model = [], {}, {}, None


def pointwise_factors(model: nn.Module) -> dict[str, float]:
    """Return the factor ``a`` of each DyT and Derf of a network, by the module's path.

    Example:
        >>> from nf_plugins.layers import DyT
        >>> pointwise_factors(nn.Sequential(nn.Linear(4, 4), DyT(4, alpha=0.25)))
        {'1': 0.25}
    """
    layers = {name: m.alpha for name, m in model.named_modules() if isinstance(m, (DyT, Derf))}
    values = torch.cat([*layers.values()]).float().tolist() if layers else []
    return dict(zip(layers, values))


def _total(norms: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(norms))


def _optimizers(given: Any) -> list[torch.optim.Optimizer]:
    """The optimizers in a wrapper, or in a dict of wrappers."""
    if isinstance(given, torch.optim.Optimizer):
        return [given]
    inner = getattr(given, 'optim_wrappers', None)  # of an OptimWrapperDict
    if isinstance(inner, dict):
        return [found for wrapper in inner.values() for found in _optimizers(wrapper)]
    optimizer = getattr(given, 'optimizer', None)
    return [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else []
