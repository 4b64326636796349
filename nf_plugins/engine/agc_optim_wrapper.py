"""Optimizer wrappers with adaptive gradient clipping."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn
from torch.optim import Optimizer

from nf_plugins.functional import adaptive_clip_grad_
from nf_plugins.functional.agc import check_patterns, skipped_parameters
from nf_plugins.registry import OPTIM_WRAPPERS
from nf_plugins.utils.checks import check_type


class _AGCMixin(OptimWrapper):
    """Mixin that adds ``clip_grad=dict(type='agc', ...)`` to an optimizer wrapper of mmengine."""

    needs_agc = True

    def __init__(self, optimizer: Optimizer, clip_grad: dict | None = None, **kwargs: Any) -> None:
        self._model: nn.Module | None = None
        self.skip: tuple[str, ...] = ()
        self.has_agc = self.needs_agc or (
            isinstance(clip_grad, dict) and clip_grad.get('type') == 'agc'
        )
        if not self.has_agc:
            super().__init__(optimizer=optimizer, clip_grad=clip_grad, **kwargs)
            return
        clip_grad = dict(check_type('clip_grad', {} if clip_grad is None else clip_grad, dict))
        kind = clip_grad.pop('type', None)
        if kind != 'agc':
            raise ValueError(
                f"{type(self).__name__} needs clip_grad=dict(type='agc', clip_factor=0.01, ...), "
                f"got type={kind!r}; for other kinds of clipping take mmengine's wrappers"
            )
        self.skip = check_patterns(clip_grad.pop('skip', ()))
        agc = dict(clip_factor=clip_grad.pop('clip_factor', 0.01), eps=clip_grad.pop('eps', 1e-3))
        if clip_grad:
            raise ValueError(
                f'clip_grad of type agc takes clip_factor, eps and skip, got {", ".join(clip_grad)}'
            )
        adaptive_clip_grad_([], **agc)  # raises for bad numbers now, not at the first step
        # mmengine does not know this type. With non-empty arguments it unscales before it clips.
        check_type('optimizer', optimizer, Optimizer)
        super().__init__(optimizer=optimizer, clip_grad=dict(max_norm=1.0), **kwargs)
        self.clip_grad_kwargs = agc

    def _see(self, model: nn.Module) -> None:
        """Keep the first model. In each step ``skip`` is compared with the names it has then."""
        if self._model is None:
            self._model = model
            skipped_parameters(model, self.skip)  # raises for unknown names now

    def initialize_count_status(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        self._see(model)
        super().initialize_count_status(model, *args, **kwargs)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        self._see(model)
        with super().optim_context(model):
            yield

    def _clip_grad(self) -> None:
        if not self.has_agc:
            super()._clip_grad()
            return
        skipped = set()
        if self.skip:
            if self._model is None:
                raise RuntimeError('the wrapper has not seen the model: enter optim_context(model)')
            skipped = skipped_parameters(self._model, self.skip)
        groups = self.optimizer.param_groups
        params = [p for group in groups for p in group['params'] if id(p) not in skipped]
        if any(p.grad is not None for p in params):
            fraction = adaptive_clip_grad_(params, **self.clip_grad_kwargs)
            self.message_hub.update_scalar('train/agc_clipped', float(fraction))


@OPTIM_WRAPPERS.register_module()
class AGCOptimWrapper(_AGCMixin):
    """Optimizer wrapper with adaptive gradient clipping.

    ``optim_wrapper=dict(type='AGCOptimWrapper', clip_grad=dict(type='agc',
    clip_factor=0.01, eps=1e-3, skip=['head.fc.weight']), optimizer=...)``

    The gradient of each unit is clipped to ``clip_factor`` times the norm of the unit's weights.
    This happens before the optimizer adds weight decay. The fraction of clipped units is logged
    as ``agc_clipped``.

    It works with DistributedDataParallel and ``torch.distributed.fsdp.fully_shard``. It does not
    work with FullyShardedDataParallel, which flattens parameters and cuts units.

    Args:
        optimizer: The optimizer.
        clip_grad: A dict of ``type='agc'``, ``clip_factor``, ``eps`` and ``skip``. ``skip`` is
            one pattern or several; parameters whose names contain one of them are not clipped.
            The papers do not clip the classifier's weight. The names are looked up at each
            step, so ``skip`` also works for a head that is replaced later.
        **kwargs: As mmengine's ``OptimWrapper``: ``accumulative_counts``.

    Raises:
        ValueError: An argument is unknown or bad, a pattern of ``skip`` is in no name, a
            gradient is sparse, or a parameter belongs to FullyShardedDataParallel.

    Source: Brock et al. 2021b, section 3.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 2)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> clip_grad = dict(type='agc', clip_factor=0.01, skip=['bias'])
        >>> wrapper = AGCOptimWrapper(sgd, clip_grad=clip_grad)
        >>> with wrapper.optim_context(model):
        ...     loss = model(torch.ones(1, 2)).square().sum()
        >>> wrapper.update_params(loss)
    """


@OPTIM_WRAPPERS.register_module()
class AGCAmpOptimWrapper(_AGCMixin, AmpOptimWrapper):
    """:class:`AGCOptimWrapper` with automatic mixed precision.

    Gradients are unscaled before they are clipped. The loss scaler skips a step if a gradient is
    not finite.
    """
