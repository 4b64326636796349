"""Run a network for measuring: in a chosen mode, and unchanged afterwards."""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint
from torch import nn
from torch.export import UnflattenedModule
from torch.nn.parameter import is_lazy
from torch.overrides import (
    BaseTorchFunctionMode,
    TorchFunctionMode,
    _get_current_function_mode_stack,
)
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils.checkpoint import CheckpointFunction

from .adapters import Arguments, adapters, first
from .parts import parts_of
from .snapshot import Snapshot, WriteWatch, restoring


def unwrap(model: Any, whole: bool = False) -> Any:
    """Return the network that images are fed to, of a model and its wrappers.

    Wrappers are compiled, parallel and averaged models, and exported programs. Inside of a whole
    model of an mm library, which reads batches of data, it is the backbone. Any other model that
    can be called reads images itself, whatever its parts are called.

    Args:
        model: A network, a whole model, or a wrapper of such.
        whole: Only take the wrappers away.

    Example:
        >>> backbone = nn.Linear(2, 2)
        >>> model = nn.Module()
        >>> model.backbone = backbone
        >>> unwrap(nn.DataParallel(model)) is backbone
        True
    """
    while True:
        inner = first(adapter.unwrap(model) for adapter in adapters())
        if inner is None and not whole:
            inner = first(adapter.fed(model) for adapter in adapters())
        if inner is None:
            return model
        model = inner


@contextmanager
def preserved(model: nn.Module, mode: str, unit_gain: bool = False) -> Iterator[Snapshot]:
    """Run a block with ``model`` in a mode, and give it back unchanged to the bit.

    What :class:`Snapshot` notes and the random states are restored, also after an
    exception, wherever it is raised. Stochastic depth and recomputation are off. Threads
    wait for one another, as the random states are the process's.

    Args:
        model: The model.
        mode: 'train', 'eval', or 'asis' for each module in its own mode.
        unit_gain: Set the gains that are zero (see :func:`zero_gains`) to one.

    Yields:
        The snapshot, whose ``note_write`` must be told of writes into parameters.
    """
    parts = parts_of(model)
    parameters = [p for _, p in parts.parameters()]
    if any(is_lazy(x) for x in (*parameters, *(buffer for _, buffer in parts.buffers()))):
        raise ValueError('the model has lazy parameters: run it once first')
    with _ALONE:
        _reshard(model)
        before = Snapshot(model)
        with (
            restoring(_random_states()),
            restoring(before.restore),
            restoring(functools.partial(_reshard, model)),
        ):
            with entered(WriteWatch(before.note_write)):
                _set_mode(model, mode)
                for gain in zero_gains(model).values() if unit_gain else ():
                    gain.data.fill_(1)
            for parameter in parameters:  # a network may do a backward pass of its own
                parameter.grad = None
            yield before


_ALONE = threading.RLock()


def _reshard(model: nn.Module) -> None:
    """Make FSDP2 replace whole parameters by the rank's own parts, which are what is noted."""
    for _, module in parts_of(model).modules:
        kind = type(module)  # FSDP2 gives the module another class
        reshard = getattr(kind, 'reshard', None)
        if callable(reshard) and hasattr(kind, 'unshard'):
            reshard(module)


def _set_mode(model: nn.Module, mode: str) -> None:
    # `train` of some modules makes or drops caches; that of others keeps frozen parts in
    # evaluation mode, so the flags are set once more.
    if mode != 'asis':
        model.train(mode == 'train')
    switches = {name for adapter in adapters() for name in adapter.switched_off}
    modules = [module for _, module in parts_of(model).modules]
    dropping = {kind for kind in set(map(type, modules)) if _names_random_depth(kind)}
    for module in modules:
        if not hasattr(module, 'training'):  # frozen TorchScript
            continue
        training = module.training if mode == 'asis' else mode == 'train'
        training = training and not (type(module) in dropping and is_random_depth(module))
        if module.training != training:
            module.training = training
        for name in switches:
            own = name in vars(module) or hasattr(type(module), name)
            if own and getattr(module, name, False) is True:
                setattr(module, name, False)


def has_fixed_mode(model: nn.Module) -> bool:
    """Tell whether the mode of a program was fixed when it was exported or frozen."""
    exported = isinstance(model, UnflattenedModule) or 'train' in vars(model)
    return exported or not hasattr(model, 'training')


def is_random_depth(module: nn.Module) -> bool:
    """Tell whether a module is stochastic depth, by the names of its class and its base classes.

    Libraries have classes of their own, which share no base: DropPath of mmcv, mmengine,
    timm and here, torchvision's StochasticDepth, SwinDropPath, ConvNextDropPath, ...

    Args:
        module: A module.

    Example:
        >>> class Mine(nn.Module): ...
        >>> class MyDropPath(Mine): ...
        >>> class Renamed(MyDropPath): ...
        >>> is_random_depth(Renamed()), is_random_depth(Mine())
        (True, False)
    """
    named = _names_random_depth(type(module))
    if named != 'longer':
        return bool(named)
    # A longer name: not of a block that has such a module.
    return next(module.children(), None) is None and next(module.parameters(), None) is None


def _names_random_depth(kind: type) -> str:
    """Whether a class has a name of stochastic depth: 'exact', 'longer', or ''."""
    known = {name for adapter in adapters() for name in adapter.random_depth}
    names = [cls.__name__.lower().replace('_', '') for cls in kind.__mro__]
    if any(name in known for name in names):
        return 'exact'
    return 'longer' if any(name.endswith(tuple(known)) for name in names) else ''


def _random_states() -> Callable[[], None]:
    """Note the random states; what is returned puts them back."""
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    cpu, gpu = torch.get_rng_state(), torch.cuda.get_rng_state_all() if on_gpu else []
    of_numpy, of_python = np.random.get_state(), random.getstate()

    def restore() -> None:
        torch.set_rng_state(cpu)
        torch.cuda.set_rng_state_all(gpu)
        np.random.set_state(of_numpy)
        random.setstate(of_python)

    return restore


def seed_all(seed: int) -> None:
    """Seed torch, numpy and random, no device that is not in use."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch, numpy and random for a block, and give their states back."""
    with restoring(_random_states()):
        seed_all(seed)
        yield


def zero_gains(model: nn.Module) -> dict[str, nn.Parameter]:
    """Find the parameters that scale a branch and are all zero.

    These are SkipInit gains, gains of standardized convolutions, LayerScale and the
    weights of norms (``zero_init_residual``): vectors or single numbers, no biases.

    Args:
        model: A model.

    Example:
        >>> from nf_plugins.models import NFResNet
        >>> list(zero_gains(NFResNet(26, base_channels=8)))[:2]
        ['layer1.0.skip_gain', 'layer1.1.skip_gain']
    """
    others = {pattern for adapter in adapters() for pattern in adapter.not_gains}
    gains = {}
    for name, parameter in parts_of(model).parameters():
        leaf = name.rpartition('.')[2]
        vector = parameter.numel() == max(parameter.shape, default=1)
        if vector and not any(fnmatchcase(leaf, pattern) for pattern in others):
            if parameter.numel() and not parameter.is_meta and not parameter.any():
                gains[name] = parameter
    return gains


@contextmanager
def plain_execution(model: nn.Module, batch: int, device: torch.device) -> Iterator[None]:
    """Run a block without compiled graphs, fused encoder layers and recomputation.

    What the adapters of its libraries ask for (:meth:`Adapter.prepare`) is set meanwhile.

    What torch has for the whole process alone is set for the time of the block, by one
    thread at a time; to all other threads it makes no difference, or none but in speed.
    """
    prepared = [x for adapter in adapters() for x in adapter.prepare(model, batch, device)]
    with (
        _ALONE,
        _replaced([*_direct_checkpoints(), *prepared]),
        _compiler_off(),
        _no_fast_path(model),
    ):
        yield


@contextmanager
def _replaced(attributes: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Give attributes of objects, (object, name, value), other values."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in attributes]

    def restore() -> None:
        for attribute in before:
            setattr(*attribute)

    with restoring(restore):
        for attribute in attributes:
            setattr(*attribute)
        yield


def _direct_checkpoints() -> list[tuple[Any, str, Any]]:
    """Return replacements of torch's checkpointing that recompute nothing in this thread.

    The function, and what it calls, for those who have imported the function before.
    """
    thread = threading.get_ident()
    checkpoint, recomputing = torch.utils.checkpoint.checkpoint, CheckpointFunction

    @functools.wraps(checkpoint)
    def direct(function, *args, **kwargs):
        if threading.get_ident() != thread:
            return checkpoint(function, *args, **kwargs)
        for key in _CHECKPOINT_OPTIONS:
            kwargs.pop(key, None)
        return function(*args, **kwargs)

    class Direct(CheckpointFunction):
        @classmethod
        def apply(cls, function, preserve, *args):
            if threading.get_ident() != thread:
                return recomputing.apply(function, preserve, *args)
            return function(*args)

    return [
        (torch.utils.checkpoint, 'checkpoint', direct),
        (torch.utils.checkpoint, 'CheckpointFunction', Direct),
    ]


_CHECKPOINT_OPTIONS = (
    *('use_reentrant', 'context_fn', 'preserve_rng_state'),
    *('determinism_check', 'debug', 'early_stop'),
)


@contextmanager
def _compiler_off() -> Iterator[None]:
    """Run compiled parts as they are written, so that the tracer sees their modules."""
    stances: list[Any] = []
    with restoring(lambda: [stance.__exit__(None, None, None) for stance in stances]):
        stances.append(torch.compiler.set_stance('force_eager'))
        yield


@contextmanager
def _no_fast_path(model: nn.Module) -> Iterator[None]:
    """Run encoder layers as they are written: in a function mode torch fuses none of them."""
    kinds = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)
    if any(isinstance(module, kinds) for _, module in parts_of(model).modules):
        with entered(BaseTorchFunctionMode()):
            yield
    else:
        yield


@contextmanager
def entered(mode: TorchDispatchMode | TorchFunctionMode) -> Iterator[None]:
    """Run a block in a mode of torch, and leave the mode after an exception, too."""

    def leave() -> None:
        if any(entry is mode for entry in stack()):
            try:
                mode.__exit__(None, None, None)
            except IndexError:  # a signal has cut the first attempt short
                _python_dispatch._pop_mode()
        vars(_python_dispatch).update(flags)

    function_mode = isinstance(mode, TorchFunctionMode)
    stack = _get_current_function_mode_stack if function_mode else _get_current_dispatch_mode_stack
    # Torch sets them before a mode is entered, and puts them back before it is left.
    flags = {k: v for k, v in vars(_python_dispatch).items() if k.startswith('_is_in_')}
    with restoring(leave):
        mode.__enter__()
        yield


@contextmanager
def grad_mode(enabled: bool) -> Iterator[None]:
    """Run a block with or without a graph for gradients."""
    before = torch.is_grad_enabled()
    if before == enabled:
        yield
        return
    with restoring(lambda: torch._C._set_grad_enabled(before)):
        torch._C._set_grad_enabled(enabled)
        yield


def arguments(model: nn.Module, inputs: Any) -> Arguments:
    """Return what a network is called with when it is given ``inputs``, as its library does it."""
    given = first(adapter.call(model, inputs) for adapter in adapters())
    return Arguments.of(inputs) if given is None else given


def run(model: nn.Module, inputs: Any) -> Any:
    """Call a network as its library does."""
    return arguments(model, inputs).pass_to(model)
