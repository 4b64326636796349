"""Measure the costs of networks with and without norms: training, inference, memory, clipping.

    python -m benchmarks.cost.benchmark --out benchmarks/results/cost_cpu.json
    python -m benchmarks.cost.benchmark --device cuda --out benchmarks/results/cost_cuda.json

The runs of all networks are interleaved in one process. A result is the ratio of the median time to
that of the plain network, an NF-ResNet-50 with ordinary convolutions and without factors. A table
(.md) and a figure (.png) with the same name are written into the folder of the JSON file.

The SkipInit gains are at 0.2, as in a training. They start at 0, and near 0 the gradients of the
first blocks become denormal numbers, which processors compute many times more slowly.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import nf_plugins.models  # noqa: F401 (registers the networks)
from benchmarks.common import command, machine, quiet
from nf_plugins.cli.arguments import ArgumentParser, positive
from nf_plugins.cli.command_line import command_line
from nf_plugins.errors import as_usage_error
from nf_plugins.functional import adaptive_clip_grad_
from nf_plugins.utils.files import atomic_write_all

from .measuring import Times, forget_peak, interleaved, memory, peak_beyond
from .report import figure, table

MODULE = 'benchmarks.cost.benchmark'
PLAIN = dict(
    conv_cfg=None,
    alpha=1.0,
    skipinit=False,
    rescale_input=False,
    act_cfg=dict(type='ReLU', gamma=1.0),
)
GAIN = 0.2
"""The SkipInit gains: their magnitude in a training."""

GROUPS = dict(type='GN', num_groups=32)
CONFIGS: dict[str, dict[str, Any]] = {
    'plain': dict(type='NFResNet', depth=50, **PLAIN),
    'NF': dict(type='NFResNet', depth=50, skipinit=GAIN),
    'PWS': dict(type='PWSResNet', depth=50),
    'BN': dict(type='mmpretrain.ResNet', depth=50),
    'GN': dict(type='mmpretrain.ResNet', depth=50, norm_cfg=GROUPS),
    'WS + GN': dict(
        type='mmpretrain.ResNet', depth=50, conv_cfg=dict(type='ConvWS'), norm_cfg=GROUPS
    ),
}
TIMM = 'timm NF'
DEPLOYED = ('NF', 'PWS')
FORMS = ('eager', 'compiled')
PARTS = ('step', 'inference', 'memory', 'agc', 'factors', 'parameters')
SHAPES = ((8, 224), (8, 128), (32, 224), (1, 224))
"""Images in a batch, and their height and width, on the CPU."""

COMPILED = ('plain', 'NF', 'PWS', 'BN')
"""Networks that are measured compiled, too; a compilation takes a minute."""


def build(name: str) -> nn.Module:
    if name != TIMM:
        return MODELS.build(CONFIGS[name])
    import timm

    net = timm.create_model('nf_resnet50', num_classes=0)
    net.forward = net.forward_features
    return net


def features(net: nn.Module, x: Tensor) -> Tensor:
    out = net(x)
    return out if isinstance(out, Tensor) else out[-1]


class Setting:
    """Device, precision and form of the networks in one series of runs."""

    def __init__(self, device: str, dtype: str, compiled: bool, batch: int, size: int) -> None:
        self.device, self.dtype, self.compiled = device, dtype, compiled
        self.shape = (batch, 3, size, size)

    @property
    def label(self) -> str:
        words = ['x'.join(map(str, self.shape))]
        words += [self.dtype] if self.device != 'cpu' else []
        words += (
            ['compiled' if self.compiled else 'eager'] if len(words) > 1 or self.compiled else []
        )
        return ', '.join(words)

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts that are measured: on a CPU no training of one image, no inference of many."""
        if self.compiled:
            return ('step',)
        if self.device != 'cpu' or self.shape[0] == 8:
            return ('step', 'inference')
        return ('inference',) if self.shape[0] < 8 else ('step',)

    def prepare(self, net: nn.Module) -> tuple[nn.Module, Tensor]:
        """Return the network and an input for it; on a GPU in channels_last."""
        layout = torch.contiguous_format if self.device == 'cpu' else torch.channels_last
        net = net.to(self.device, memory_format=layout)
        x = torch.randn(self.shape, device=self.device).to(memory_format=layout)
        return (torch.compile(net) if self.compiled else net), x

    def autocast(self) -> torch.autocast:
        low = torch.bfloat16
        return torch.autocast(self.device, low, enabled=self.dtype == 'bf16')


def training_step(net: nn.Module, setting: Setting) -> Callable[[], None]:
    """Make a job of a forward pass, a backward pass and an SGD step."""
    net.train()
    net, x = setting.prepare(net)
    sgd = torch.optim.SGD(net.parameters(), lr=1e-6, momentum=0.9, nesterov=True)

    def job() -> None:
        with setting.autocast():
            loss = features(net, x).float().square().mean()
        loss.backward()
        sgd.step()
        sgd.zero_grad()

    return job


def inference(net: nn.Module, setting: Setting) -> Callable[[], None]:
    net.eval()
    net, x = setting.prepare(net)

    def job() -> None:
        with torch.inference_mode(), setting.autocast():
            features(net, x)

    return job


def deployed(name: str) -> nn.Module:
    net = build(name)
    net.switch_to_deploy()
    return net


def summary(times: Times, base: str = 'plain') -> dict[str, dict]:
    """Compute the milliseconds (median and quartiles) and the ratio of medians for each job."""
    reference = statistics.median(times[base])
    found = {}
    for name, seconds in times.items():
        # The default method extrapolates; with few rounds, quantiles may even be negative.
        low, middle, high = (
            statistics.quantiles(seconds, n=4, method='inclusive')
            if len(seconds) > 1
            else seconds * 3
        )
        found[name] = dict(
            ms=[round(1000 * s, 3) for s in (low, middle, high)],
            ratio=round(middle / reference, 4),
            ratio_quartiles=[round(s / reference, 4) for s in (low, high)],
        )
    return found


def saved_bytes(name: str, shape: tuple[int, ...]) -> int:
    """Count the bytes that a training step keeps for its backward pass."""
    net = build(name)
    net.train()  # not chained: it returns None in mmpretrain
    return kept_bytes(net, torch.randn(shape))


def kept_bytes(net: nn.Module, x: Tensor) -> int:
    """Count the bytes that a forward pass keeps for the backward pass.

    Each piece of memory counts once. The parameters do not count.
    """
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = features(net, x)
    del out
    return sum(kept.values())


@quiet()
def report_peak(name: str, shape: str) -> None:
    """Print the MiB that two training steps need beyond the network and the input."""
    batch, _, size, _ = json.loads(shape)
    small = training_step(build(name), Setting('cpu', 'fp32', False, 2, 64))
    small()  # imports, and buffers of libraries
    job = training_step(build(name), Setting('cpu', 'fp32', False, batch, size))
    forget_peak()
    before = memory('VmRSS')
    job()
    job()
    print(memory('VmHWM') - before)


def cuda_peak(name: str, setting: Setting) -> float:
    """Measure the MiB of PyTorch's allocator for two training steps, with network and input."""
    torch.cuda.empty_cache()
    job = training_step(build(name), setting)
    job()
    torch.cuda.reset_peak_memory_stats()
    job()
    return torch.cuda.max_memory_allocated() / 2**20


def clipping(device: str, rounds: int) -> dict[str, dict]:
    """Measure our gradient clipping and timm's on the parameters of NFNet-F0."""
    from timm.utils.agc import adaptive_clip_grad

    net = MODELS.build(dict(type='NFNet', arch='f0')).to(device)
    params = list(net.parameters())
    generator = torch.Generator(device).manual_seed(0)
    for p in params:
        p.grad = torch.randn(p.shape, device=device, generator=generator) * 0.01
    jobs = {
        'timm': lambda: adaptive_clip_grad(params, 0.01, 1e-3),
        'ours': lambda: adaptive_clip_grad_(params, 0.01, 1e-3),
    }
    return summary(interleaved(jobs, rounds, warmup=3), base='timm')


class FactorCounter(TorchDispatchMode):
    """Counter of multiplications of activations by a single number, a constant or a parameter.

    An activation is a 4-D tensor whose first axis is the batch.
    """

    OPS = ('mul', 'div', 'addcmul', 'addcdiv')

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch, self.count = batch, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.partition('::')[2].rstrip('_')
        out = [x for x in tree_iter(result) if isinstance(x, Tensor)]
        if any(x.dim() == 4 and len(x) == self.batch and x[0, 0].numel() > 1 for x in out):
            numbers = [
                x
                for x in args
                if isinstance(x, (int, float)) or (isinstance(x, Tensor) and x.numel() == 1)
            ]
            scaled = name in self.OPS and numbers
            if scaled or (name in ('add', 'sub') and kwargs.get('alpha', 1) != 1):
                self.count += 1
            elif name == 'addcmul' and kwargs.get('value', 1) != 1:
                self.count += 1
        return result


def factor_passes(net: nn.Module, batch: int = 7) -> int:
    """Count the passes in a training step that multiply activations by a number."""
    net.train()
    x = torch.randn(batch, 3, 64, 64)
    with FactorCounter(batch) as counter:
        features(net, x).sum().backward()
    return counter.count


def settings_of(args: argparse.Namespace) -> list[Setting]:
    """List the settings; the compiled ones come last, as they take the longest."""
    kinds = [form == 'compiled' for form in FORMS if form in args.forms]
    if args.device == 'cpu':
        return [Setting('cpu', 'fp32', kind, *shape) for kind in kinds for shape in args.shapes]
    return [
        Setting(args.device, dtype, compiled, batch, 224)
        for compiled in kinds
        for dtype in ('bf16', 'fp32')
        for batch in args.batches[: 1 if compiled else None]
    ]


def measure_setting(names: list[str], setting: Setting, args: Any) -> dict[str, dict]:
    """Measure the times of one setting, and the memory if it is on a GPU."""
    if setting.compiled:
        names = [name for name in names if name in COMPILED]
    parts = set(args.parts) & {*setting.parts, 'memory'}

    def measured(jobs: dict[str, Callable[[], None]]) -> dict:
        return {setting.label: summary(interleaved(jobs, args.rounds, warmup=2))}

    found: dict[str, dict] = {}
    if 'step' in parts:
        found['training step'] = measured(
            {name: training_step(build(name), setting) for name in names}
        )
    if 'inference' in parts:
        jobs = {name: inference(build(name), setting) for name in names}
        jobs |= {
            f'{name} deployed': inference(deployed(name), setting)
            for name in DEPLOYED
            if name in names
        }
        found['inference'] = measured(jobs)
    if 'memory' in parts and setting.device == 'cuda' and not setting.compiled:
        label = f'peak memory of a training step, {setting.label}'
        found['memory'] = {label: {name: cuda_peak(name, setting) for name in names}}
    return found


def cpu_memory(names: list[str], setting: Setting, args: Any) -> dict[str, dict]:
    """Measure the bytes that training steps save, and their peak memory."""
    size = setting.shape[-1]
    shape = (args.saved_batch, 3, size, size)
    saved = {name: saved_bytes(name, shape) / 2**20 for name in names}
    peak_shape = json.dumps(setting.shape)
    peaks = {name: peak_beyond(MODULE, 'report_peak', name, peak_shape) for name in names}
    return {
        f'saved for the backward pass, {"x".join(map(str, shape))}': saved,
        f'peak resident memory of a training step, {setting.label}': peaks,
    }


def measure(names: list[str], args: Any) -> dict[str, dict]:
    """Measure the parts that were asked for."""
    results: dict[str, dict] = {}
    settings = settings_of(args)
    for setting in settings:
        print(setting.label, file=sys.stderr, flush=True)
        for part, found in measure_setting(names, setting, args).items():
            results.setdefault(part, {}).update(found)
    if 'memory' in args.parts and args.device == 'cpu':
        results['memory'] = cpu_memory(names, settings[0], args)
    if 'agc' in args.parts:
        results['clipping'] = clipping(args.device, 3 * args.rounds)
    if 'factors' in args.parts and args.device == 'cpu':
        results['factors'] = {name: factor_passes(build(name)) for name in names}
    if 'parameters' in args.parts:
        results['parameters'] = {
            name: sum(p.numel() for p in build(name).parameters()) for name in names
        }
    return results


def shape(text: str) -> tuple[int, int]:
    """Read '8x224': the images of a batch, and their height and width."""
    batch, _, size = text.partition('x')
    return positive(batch), positive(size)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--rounds', type=positive, default=15)
    parser.add_argument(
        '--shapes', type=shape, nargs='+', default=SHAPES, metavar='BATCHxSIZE', help='CPU'
    )
    parser.add_argument('--batches', type=positive, nargs='+', default=[256, 32], help='GPU')
    parser.add_argument(
        '--forms', nargs='+', choices=FORMS, help='default: all on a GPU, eager on the CPU'
    )
    parser.add_argument('--saved-batch', type=positive, default=32, help='batch for saved bytes')
    parser.add_argument('--networks', nargs='+', choices=[*CONFIGS, TIMM])
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=PARTS)
    parser.add_argument('--out', type=Path, help='JSON file')
    with as_usage_error('bad arguments'):
        args = parser.parse_args(arguments)
    args.forms = args.forms or FORMS[: 1 if args.device == 'cpu' else None]
    return args


def run(args: argparse.Namespace) -> dict[str, dict]:
    """Measure what the arguments ask for."""
    torch.manual_seed(0)
    names = args.networks or [*CONFIGS, TIMM]
    return measure(list(dict.fromkeys(['plain', *names])), args)


@command_line
@quiet()
def main() -> None:
    args = parse_args()
    if args.device == 'cuda':
        with as_usage_error('--device cuda needs a GPU'):
            torch.zeros(1, device='cuda')
    results = run(args)
    text = table(results)
    print(text)
    if args.out:
        found = dict(
            machine=machine(), command=command(MODULE), skipinit_gain=GAIN, results=results
        )
        with as_usage_error(f'cannot write {args.out}'):
            files = {args.out: json.dumps(found, indent=1) + '\n'}
            files[args.out.with_suffix('.md')] = text
            if {'step', 'inference'} & set(args.parts):
                files[args.out.with_suffix('.png')] = figure(results)
            atomic_write_all(files)


if __name__ == '__main__':
    main()
