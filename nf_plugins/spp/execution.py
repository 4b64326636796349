"""Run a network for measuring: in a chosen mode, without a trace left behind."""

from __future__ import annotations

import inspect
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from mmengine.model import BaseAveragedModel, is_model_wrapper
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

_RANDOM_DEPTH = ('DropPath', 'StochasticDepth')


def unwrap(model: nn.Module) -> nn.Module:
    """The backbone inside a model and its wrappers (compiled, parallel, averaged).

    Args:
        model: A backbone, a model that has one as ``backbone``, or a wrapper of such.

    Example:
        >>> backbone = nn.Linear(2, 2)
        >>> model = nn.Module()
        >>> model.backbone = backbone
        >>> unwrap(nn.DataParallel(model)) is backbone
        True
    """
    while True:
        wrapper = isinstance(model, (BaseAveragedModel, AveragedModel)) or is_model_wrapper(model)
        inner = getattr(model, '_orig_mod', None)
        if inner is None and wrapper:
            inner = model.module
        if inner is None:
            inner = getattr(model, 'backbone', None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


@contextmanager
def preserved(model: nn.Module, mode: str, unit_gain: bool = False) -> Iterator[None]:
    """Run a block with ``model`` in a mode, and give it back unchanged to the bit.

    Buffers (batch norm's running statistics), what a first training batch
    initialises, attributes and flags of modules and parameters and the random states are
    restored, also after an exception; not what a network itself writes into its
    parameters while it runs. Stochastic depth and recomputation are off.

    Args:
        model: The model.
        mode: 'train' or 'eval'.
        unit_gain: Set the gains that are zero (see :func:`zero_gains`) to one.
    """
    if any(is_lazy(p) for p in (*model.parameters(), *model.buffers())):
        raise ValueError('the model has lazy parameters: run it once first')
    modules = list(model.modules())
    training = {module: module.training for module in modules}
    attributes = {
        module: _shallow(vars(module))
        for module in modules
        if not isinstance(module, torch.jit.ScriptModule)
    }
    requires_grad = {p: p.requires_grad for p in model.parameters()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    lazily_initialised = [
        (module, {key: value.clone() for key, value in module.state_dict().items()})
        for module in modules
        if getattr(module, 'initalpha', False)
    ]
    gains = zero_gains(model) if unit_gain else {}
    gains = {name: (gain, gain.detach().clone()) for name, gain in gains.items()}
    devices = list({p.device.index for p in model.parameters() if p.is_cuda})
    states = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices):
        try:
            # `train` of some modules makes or drops caches; that of others keeps frozen
            # parts in evaluation mode, so the flags are set once more.
            model.train(mode == 'train')
            for module in modules:
                module.training = mode == 'train' and type(module).__name__ not in _RANDOM_DEPTH
                if getattr(module, 'with_cp', False) is True:
                    module.with_cp = False
                if getattr(module, 'fold_scale', False) is True:  # else branches end scaled
                    module.fold_scale = False
            for gain, _ in gains.values():
                gain.data.fill_(1)
            yield
        finally:
            for module, before in attributes.items():
                _restore(vars(module), before)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
                for gain, value in gains.values():
                    gain.data.copy_(value)
            for module, state in lazily_initialised:
                module.load_state_dict(state)
            for module, flag in training.items():
                module.training = flag
            for parameter, flag in requires_grad.items():
                parameter.requires_grad_(flag)
            np.random.set_state(states[0])
            random.setstate(states[1])


def _shallow(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Each attribute, and of lists, dicts (buffers are in one) and sets what is in them."""
    return {
        name: (value, value.copy() if isinstance(value, (list, dict, set)) else None)
        for name, value in attributes.items()
    }


def _restore(attributes: dict[str, Any], before: dict[str, tuple[Any, Any]]) -> None:
    for name in attributes.keys() - before.keys():
        del attributes[name]
    for name, (value, content) in before.items():
        attributes[name] = value
        if content is not None:
            value.clear()
            (value.extend if isinstance(value, list) else value.update)(content)


def zero_gains(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that scale a branch and are all zero.

    These are SkipInit gains, gains of standardized convolutions, LayerScale and the
    weights of norms (``zero_init_residual``): vectors or single numbers, no biases.

    Args:
        model: A model.

    Example:
        >>> from nf_plugins.models import NFResNet
        >>> list(zero_gains(NFResNet(26, base_channels=8)))[:2]
        ['layer1.0.skip_gain', 'layer1.1.skip_gain']
    """
    gains = {}
    for name, parameter in model.named_parameters():
        leaf = name.rpartition('.')[2]
        vector = parameter.numel() == max(parameter.shape, default=1)
        if vector and leaf not in ('bias', 'beta', 'cls_token') and 'token' not in leaf:
            if parameter.numel() and not parameter.is_meta and not parameter.any():
                gains[name] = parameter
    return gains


@contextmanager
def plain_execution(model: nn.Module, batch: int, device: torch.device) -> Iterator[None]:
    """No compiled graphs, no fused encoder layers, no recomputation; masks of sparse nets."""
    with ExitStack() as stack:
        if hasattr(torch.compiler, 'set_stance'):
            stack.enter_context(torch.compiler.set_stance('force_eager'))
        # Of a compiled part: the hooks of the tracer see it and what it was made of.
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings('ignore', r'Using `torch\.compile\(module\)`')
        fast = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)

        def direct(function, *args, use_reentrant=None, context_fn=None, **kwargs):
            for key in ('preserve_rng_state', 'determinism_check', 'debug', 'early_stop'):
                kwargs.pop(key, None)
            return function(*args, **kwargs)

        stack.enter_context(mock.patch('torch.utils.checkpoint.checkpoint', direct))
        # mmpretrain's sparse layers (SparK) share a mask of what is seen: here, all.
        modules = {sys.modules.get(type(module).__module__) for module in model.modules()}
        for helper in {getattr(module, 'SparseHelper', None) for module in modules} - {None}:
            seen = torch.ones(batch, 1, 1, 1, dtype=torch.bool, device=device)
            stack.enter_context(mock.patch.object(helper, '_cur_active', seen))
        yield


def run(model: nn.Module, inputs: Tensor) -> Any:
    """Call a backbone; to those of masked pre-training None says that nothing is masked."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())[1:]
    except (TypeError, ValueError):  # a traced model has none
        parameters = []
    masks = {
        p.name: None
        for p in parameters
        if p.name == 'mask' or (p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD)
    }
    return model(inputs, **masks)
