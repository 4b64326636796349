"""What is fed to a network: which part of it, with which arguments, and where gradients end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nf_plugins.errors import printable

from .adapters import first
from .adapters.arguments import Arguments, parameters_of, tensors_in
from .execution import arguments, unwrap

if TYPE_CHECKING:
    from .graph.tracer import Call, Tracer

    Observe = Callable[[Tracer, Call, Any], None]


def measured_part(model: Any, inputs: Any, module: str | None, call: Any) -> tuple[nn.Module, str]:
    """Return the part of a model that is measured, and its path.

    Args:
        model: The model, perhaps in wrappers.
        inputs: A tensor goes to what :func:`unwrap` says, anything else to the whole model.
        module: Path of the part; '' is the whole model, None leaves it to ``inputs``.
        call: If the user calls the network, then the whole model is measured.

    Raises:
        TypeError: It is no network.
        ValueError: There is no such part.
    """
    whole = unwrap(model, whole=True)
    if not isinstance(whole, nn.Module):
        raise TypeError(
            f'model must be an nn.Module, got {printable(repr(model), 60)} (train() and eval() of '
            'most backbones in mmpretrain return None; programs of torch.export are taken, too)'
        )
    if module is not None:
        part = next((p for name, p in whole.named_modules() if name == module), None)
        if part is None:
            raise ValueError(f'module must be a path in the model, got {module!r}; {parts(whole)}')
        return unwrap(part, whole=True), module
    part = unwrap(whole, whole=call is not None or not isinstance(inputs, Tensor))
    if part is whole:
        return part, ''
    return part, next((name for name, found in whole.named_modules() if found is part), '')


def parts(model: nn.Module) -> str:
    """Say which parts with weights a model has."""
    names = [n for n, part in model.named_children() if next(part.parameters(), None) is not None]
    return f'it has {", ".join(names)}' if names else 'it has no parts with weights'


class Feed:
    """The arguments of one call of a network, and the tensors at which gradients end.

    Args:
        model: The network, in its mode.
        inputs: What the user has given.
        mode: The mode, for messages.
        call: Runs the network, if the user does it.
        backward: Whether gradients shall reach the inputs.

    Raises:
        TypeError: No tensor is among the inputs.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        mode: str,
        call: Callable[[nn.Module, Any], Any] | None,
        backward: bool,
    ) -> None:
        if next(tensors_in(inputs), None) is None:
            raise TypeError(
                'inputs must be a tensor, a tuple or dict of arguments with tensors in it, or a '
                f'batch of an mm data loader, got {printable(repr(inputs), 60)}'
            )
        self.model, self.mode, self.call = model, mode, call
        self.given = Arguments((inputs,)) if call is not None else arguments(model, inputs)
        self.given = self.given.map(torch.Tensor.detach)
        self.leaves: list[Tensor] = []
        self.passed = self.given.map(self._leaf if backward else torch.clone)

    def _leaf(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.clone()
        self.leaves.append(tensor.clone().requires_grad_())
        return self.leaves[-1] * 1  # not the leaf: networks may write into their input

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that the network gets."""
        return self.passed.tensors()

    def signals(self) -> list[Tensor]:
        """Return the largest inputs that are no integers: images, not time steps or masks."""
        numbers = [x for x in self.given.tensors() if x.is_floating_point()]
        return [x for x in numbers if x.numel() == max(y.numel() for y in numbers)]

    def shapes(self) -> dict[str, Any]:
        """Say for a profile what went in: the first tensor, and all if there are several."""
        tensors = self.given.tensors()
        more = dict(shapes=[list(x.shape) for x in tensors]) if len(tensors) > 1 else {}
        return dict(shape=list(tensors[0].shape), **more)

    def run(self) -> Any:
        """Call the network.

        Raises:
            Exception: What the network raises, with what it was called with.
        """
        try:
            if self.call is not None:
                return self.call(self.model, self.passed.args[0])
            return self.passed.pass_to(self.model)
        except Exception as error:
            raise explained(error, self._advice()) from error.__cause__

    def _advice(self) -> str:
        name = type(self.model).__name__
        if self.call is not None:
            return f'{name} was called by the call= of the analysis with {self.given}'
        wanted = ', '.join(str(p.name) for p in parameters_of(self.model)[:8])
        return (
            f'{name} was called in {self.mode} mode with {self.given}'
            f'{f", its forward takes ({wanted})" if wanted else ""}; to pass something else, give '
            'analyze a tuple of positional or a dict of named arguments, or '
            'call=lambda model, inputs: ..., or with module= another part of the model'
        )

    def watching(self, observe: Observe | None) -> Observe:
        """Return an observer of a tracer that calls another one, and looks where tokens end."""

        def both(tracer: Tracer, call: Call, result: Any) -> None:
            self._see(call, result)
            if observe is not None:
                observe(tracer, call, result)

        return both

    def _see(self, call: Call, result: Any) -> None:
        """Note the floating point tensors that are computed from integers alone: embeddings."""
        if any(x.is_floating_point() for _, x in call.given):
            return
        trained = any(x.requires_grad for x in tensors_in([*call.args, call.kwargs]))
        for out in tensors_in(result):
            if out.is_floating_point():
                self.leaves.append(out if trained else out.requires_grad_())

    def send_noise_back(self, output: Any) -> None:
        """Backpropagate unit Gaussian noise from the output to the inputs, no further."""
        last = _main_output(output)
        leaves = [leaf for leaf in self.leaves if leaf.requires_grad]
        if last is None or not leaves:
            raise ValueError('the gradient cannot be measured: no output depends on the input')
        noise = torch.randn(last.shape, dtype=last.dtype, device='cpu').to(last.device)
        torch.autograd.grad(last, leaves, noise, allow_unused=True)


def _main_output(output: Any) -> Tensor | None:
    """Return the first of named outputs that has a gradient, and the last one of a tuple."""
    if isinstance(output, Tensor):
        return output if output.requires_grad else None
    if isinstance(output, Mapping):
        values = [*output.values()]
    elif is_dataclass(output):
        values = [getattr(output, spec.name) for spec in fields(output)]
    elif isinstance(output, (list, tuple)):
        values = list(output if hasattr(output, '_fields') else reversed(output))
    else:
        return None
    return first(_main_output(value) for value in values)


def explained(error: Exception, advice: str) -> Exception:
    """Return an error of the same class whose message ends with ``advice``, if that is possible.

    Example:
        >>> explained(IndexError('too far'), 'it was called with 3')
        IndexError('too far; it was called with 3')
    """
    message = f'{str(error) or type(error).__name__}; {advice}'
    before = error.args
    error.args = (message,)
    if str(error) == message:
        return error
    error.args = before  # an error that makes its message of something else
    return RuntimeError(f'{type(error).__name__}: {message}')
