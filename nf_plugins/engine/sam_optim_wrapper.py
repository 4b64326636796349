"""Sharpness-aware minimisation as mm optimizer wrappers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from nf_plugins.registry import OPTIM_WRAPPERS
from nf_plugins.utils.checks import check_number

from .agc_optim_wrapper import _AGCMixin


class _SAMMixin(_AGCMixin):
    """Adds the two passes of SAM to an optimizer wrapper of mmengine, with AGC or without."""

    needs_agc = False
    _inner_count: int

    def __init__(
        self, optimizer: Optimizer, rho: float = 0.05, ratio: float = 1.0, **kwargs: Any
    ) -> None:
        self.rho = check_number('rho', rho, 'a positive number')
        self.ratio = check_number('ratio', ratio, 'a positive number')
        if ratio > 1:
            raise ValueError(f'ratio must be at most 1, got {ratio!r}')
        super().__init__(optimizer, **kwargs)
        self._calls: list[tuple[nn.Module, tuple, dict]] = []

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the first pass in here: on a part of the batch, without synchronisation."""
        self._calls.clear()
        hook = model.register_forward_pre_hook(self._first_pass, with_kwargs=True)
        no_sync: Any = getattr(model, 'no_sync', nullcontext)
        try:
            with no_sync(), super().optim_context(model):
                yield
        finally:
            hook.remove()

    def _first_pass(self, model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        self._calls.append((model, args, kwargs))
        number = _batch_size((args, kwargs)) if self.ratio < 1 else None
        if number is None:
            return args, kwargs
        count = math.ceil(self.ratio * number)
        return _first((args, kwargs), number, count)

    def update_params(
        self,
        loss: Tensor,
        step_kwargs: dict | None = None,
        zero_kwargs: dict | None = None,
        closure: Callable[[], Tensor] | None = None,
    ) -> None:
        """Go up, compute the loss there, go back, and update with the gradient from there.

        Args:
            loss: The loss of the first pass, computed in :meth:`optim_context`.
            step_kwargs: Arguments of the optimizer's ``step``.
            zero_kwargs: Arguments of the optimizer's ``zero_grad``.
            closure: Computes the loss once more. By default the model is called as before, and
                its ``parse_losses`` adds up what it returns.

        Raises:
            RuntimeError: There is no closure, and the model was not called exactly once.
        """
        calls, model = list(self._calls), self._model
        self._calls.clear()
        if closure is None and len(calls) != 1:
            raise RuntimeError(
                f'{type(self).__name__} repeats the one call of the model in optim_context(model), '
                f'and there were {len(calls)}: give update_params a closure that computes the loss'
            )
        with self._perturbed(self._ascent(loss)):
            with super().optim_context(model) if model is not None else nullcontext():
                second = closure() if closure is not None else _loss(*calls[0])
            self.backward(self.scale_loss(second))
        if self.should_update():
            self.step(**(step_kwargs or {}))
            self.zero_grad(**(zero_kwargs or {}))

    def _ascent(self, loss: Tensor) -> dict[Tensor, Tensor]:
        """Parameter -> gradient of the first pass; the gradients that are accumulated stay."""
        groups = self.optimizer.param_groups
        params = [p for group in groups for p in group['params'] if p.requires_grad]
        kept, count = [p.grad for p in params], self._inner_count
        for p in params:
            p.grad = None
        try:
            self.backward(loss)
            return {p: p.grad for p in params if p.grad is not None}
        finally:
            self._inner_count = count
            for p, grad in zip(params, kept):
                p.grad = grad

    @contextmanager
    def _perturbed(self, grads: dict[Tensor, Tensor]) -> Iterator[None]:
        """Move the parameters by rho along the gradient, and put them back to the bit."""
        params = list(grads)
        with torch.no_grad():
            before = [p.clone() for p in params]
            if params:
                norm = get_total_norm(grads.values())
                norm = norm.full_tensor() if hasattr(norm, 'full_tensor') else norm
                for p, grad in grads.items():
                    p.add_(grad * (self.rho / (norm + 1e-12)).to(grad.device))
        try:
            yield
        finally:
            with torch.no_grad():
                for p, value in zip(params, before):
                    p.copy_(value)


def _loss(model: nn.Module, args: tuple, kwargs: dict) -> Tensor:
    losses = model(*args, **kwargs)
    if isinstance(losses, Tensor):
        return losses
    whole = model if hasattr(model, 'parse_losses') else model.module
    return whole.parse_losses(losses)[0]  # type: ignore[operator, union-attr]


def _batch_size(data: Any) -> int | None:
    """The number of images: the length of the first tensor, or list of tensors, of a batch."""
    if isinstance(data, Tensor):
        return len(data) if data.dim() else None
    if isinstance(data, list) and data and isinstance(data[0], Tensor):
        return len(data)
    inner = data.values() if isinstance(data, Mapping) else data
    if isinstance(data, (Mapping, tuple, list)):
        return next((n for n in map(_batch_size, inner) if n is not None), None)
    return None


def _first(data: Any, number: int, count: int) -> Any:
    """The first images of a batch: of each tensor and list that has as many members."""
    if isinstance(data, (Tensor, list)) and not (isinstance(data, Tensor) and not data.dim()):
        if len(data) == number:
            return data[:count]
    if isinstance(data, Mapping):
        return {key: _first(value, number, count) for key, value in data.items()}
    if type(data) in (tuple, list):
        return type(data)(_first(value, number, count) for value in data)
    return data


@OPTIM_WRAPPERS.register_module()
class SAMOptimWrapper(_SAMMixin):
    r"""Optimizer wrapper of sharpness-aware minimisation (SAM).

    .. math:: w \leftarrow w - \eta\, \nabla L\!\left(
        w + \rho\, \frac{\nabla L(w)}{\|\nabla L(w)\|_2}\right)

    ``optim_wrapper=dict(type='SAMOptimWrapper', rho=0.05, ratio=0.2, optimizer=...)``

    Each step has two passes: the first one finds the direction in which the loss rises most, the
    second one computes the gradient after a step of length rho in this direction. The
    parameters go back, to the bit, before the optimizer updates them. The loss that is logged is
    that of the first pass.

    As in the paper on NFNets, the first pass may take a part of the batch; processes of
    DistributedDataParallel do not exchange their gradients of it, so each has its own direction;
    and with gradient accumulation each part of a step has its own. Random numbers (dropout) are
    drawn anew in the second pass. A network with batch norm updates its statistics in both.

    Args:
        optimizer: The optimizer.
        rho: Length of the step.
        ratio: Part of the batch that the first pass takes, the first images of it (rounded up);
            it also takes that part of every list that is as long as the batch.
        clip_grad: ``dict(type='agc', ...)`` as of :class:`AGCOptimWrapper`, or as of mmengine's
            ``OptimWrapper``. The gradient of the second pass is clipped.
        **kwargs: As mmengine's ``OptimWrapper``: ``accumulative_counts``.

    Raises:
        ValueError, TypeError: Unknown or bad arguments.

    Source: Foret et al. 2021 (arXiv 2010.01412); Brock et al. 2021b, appendix A.4.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> wrapper = SAMOptimWrapper(sgd, rho=0.05)
        >>> loss = lambda: model(torch.ones(1, 2)).square().sum()
        >>> with wrapper.optim_context(model):
        ...     first = loss()
        >>> wrapper.update_params(first, closure=loss)
    """


@OPTIM_WRAPPERS.register_module()
class SAMAmpOptimWrapper(_SAMMixin, AmpOptimWrapper):
    """:class:`SAMOptimWrapper` with automatic mixed precision.

    Where the gradient of the first pass is not finite, that of the second is not either, and the
    loss scaler skips the step.
    """
