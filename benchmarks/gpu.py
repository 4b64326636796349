"""Measure on a GPU what else is measured on the CPU alone: `make gpu`, under ten minutes.

    python -m benchmarks.gpu                            # writes benchmarks/results/*_cuda.json
    python -m benchmarks.gpu --device cpu --out /tmp/a  # every part, small: does it run?

The parts run in the order of their worth, each in its own process. A part that does not end in the
time that is left is stopped, and the results of the others stay. The last line names what failed.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.common import ROOT, command, machine, quiet
from benchmarks.cost import benchmark
from benchmarks.cost.measuring import interleaved
from benchmarks.spp.ratios import bare
from nf_plugins.checkpoint import safe_load
from nf_plugins.cli.arguments import ArgumentParser, positive
from nf_plugins.cli.command_line import command_line
from nf_plugins.errors import as_usage_error, say
from nf_plugins.functional.standardization import Standardization, standardize, standardized_weight
from nf_plugins.spp import analyze
from nf_plugins.utils.files import atomic_write

MODULE = 'benchmarks.gpu'
DIGITS = 'configs/nf_resnet/nf-resnet_digits.py'
SMALL = [
    'train_cfg.max_epochs=1',
    *(f'{split}_dataloader.dataset.indices=32' for split in ('train', 'val', 'test')),
]
"""A training that shows that it runs."""

SHAPES = ((64, 64, 3, 3), (512, 512, 3, 3), (2048, 512, 1, 1), (64, 3, 7, 7))
"""Weights of a ResNet-50."""


def kernels(device: str, rounds: int) -> dict:
    """Compare the kernels with the formula, in value and in time."""
    found = {}
    for shape in SHAPES:
        weight, scale = torch.randn(shape, device=device), torch.rand(shape[0], device=device)
        constants = Standardization(var_factor=float(weight[0].numel()), eps=1e-4, clamp=True)
        exact = standardize(weight.double(), scale.double(), constants)
        error = (standardized_weight(weight, scale, constants) - exact).norm() / exact.norm()
        jobs: dict[str, Callable[[], object]] = {
            'formula': lambda: standardize(weight, scale, constants),  # noqa: B023
            'kernel': lambda: standardized_weight(weight, scale, constants),  # noqa: B023
        }
        times = benchmark.summary(interleaved(jobs, 3 * rounds, warmup=3), base='formula')
        found['x'.join(map(str, shape))] = dict(relative_error=error.item(), **times)
    return found


def images_per_second(device: str, rounds: int) -> dict:
    """Fill in the columns of speed in the PWSConv repository's table: ResNet-50, float32."""
    batch, size = (64, 224) if device == 'cuda' else (2, 64)
    setting = benchmark.Setting(device, 'fp32', False, batch, size)
    names = ['BN', 'PWS', 'NF']
    jobs = {
        'training': {
            name: benchmark.training_step(benchmark.build(name), setting) for name in names
        },
        'inference': {name: benchmark.inference(benchmark.build(name), setting) for name in names},
    }
    return {
        part: {
            name: batch / statistics.median(seconds)
            for name, seconds in interleaved(of_part, rounds, warmup=2).items()
        }
        for part, of_part in jobs.items()
    }


def analysis(device: str, rounds: int) -> dict:
    """Compare the time of an analysis with that of a bare forward pass."""
    batch, size = (32, 224) if device == 'cuda' else (2, 64)
    x, found = torch.randn(batch, 3, size, size, device=device), {}
    for name in ('BN', 'NF'):
        model = benchmark.build(name).to(device)
        model.train()  # not chained: it returns None in mmpretrain
        jobs = {job.__name__: functools.partial(job, model, x) for job in (bare, analyze)}
        times = interleaved(jobs, rounds)
        found[name] = benchmark.summary(times, base='bare')
    return found


def train_digits(device: str, folder: Path, *options: str, launcher: str = 'none') -> Path:
    """Train on the digits by the tool, and return the folder with its log."""
    start = [sys.executable]
    if launcher == 'pytorch':
        start += ['-m', 'torch.distributed.run', '--nproc_per_node=1', '--master_port=29511']
    arguments = ['tools/train.py', DIGITS, '--work-dir', str(folder), '--launcher', launcher]
    settings = [] if device == 'cuda' else SMALL
    done = subprocess.run(
        [*start, *arguments, *options, '--cfg-options', 'randomness.seed=0', *settings],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f'{" ".join(arguments)} failed: {done.stderr.strip()[-300:]}')
    return folder


def accuracy(folder: Path) -> float:
    """Return the last test accuracy in the log of a training."""
    lines = max(folder.glob('*/vis_data/scalars.json')).read_text().splitlines()
    found = [row['accuracy/top1'] for row in map(json.loads, lines) if 'accuracy/top1' in row]
    return found[-1]


def mixed_precision(device: str, rounds: int) -> dict:
    """Train on the digits in float32 and with automatic mixed precision."""
    with tempfile.TemporaryDirectory() as folder:
        found = {'fp32': accuracy(train_digits(device, Path(folder) / 'fp32'))}
        if device == 'cuda':  # mmengine's mixed precision needs an accelerator
            found['amp'] = accuracy(train_digits(device, Path(folder) / 'amp', '--amp'))
    return found


def one_process_of_ddp(device: str, rounds: int) -> dict:
    """Compare the weights after a training under DDP in one process with those without DDP."""
    weights = {}
    with tempfile.TemporaryDirectory() as name:
        for launcher in ('none', 'pytorch'):
            folder = train_digits(device, Path(name) / launcher, launcher=launcher)
            last = (folder / 'last_checkpoint').read_text()
            weights[launcher] = safe_load(last)['state_dict']
    differences = [
        (weight.double() - weights['pytorch'][key].double()).abs().max().item()
        for key, weight in weights['none'].items()
        if weight.is_floating_point()
    ]
    return dict(largest_difference=max(differences))


def cost(device: str, rounds: int, **options: str) -> dict:
    """Measure times and memory of all networks, with options of the benchmark of costs."""
    arguments = [word for name, value in options.items() for word in (f'--{name}', value)]
    if device == 'cpu':
        arguments += ['--shapes', '8x32', '--saved-batch', '2', '--networks', 'NF']
    return benchmark.run(
        benchmark.parse_args(['--device', device, '--rounds', str(rounds), *arguments])
    )


PARTS: dict[str, Callable[[str, int], dict]] = {
    'kernels': kernels,
    'speed': images_per_second,
    'analysis': analysis,
    'amp': mixed_precision,
    'ddp': one_process_of_ddp,
    'cost': functools.partial(cost, forms='eager'),
    'compiled': functools.partial(cost, forms='compiled', parts='step'),  # a minute each: last
}


def run_part(name: str, device: str, rounds: int, seconds: float, out: Path) -> str | None:
    """Run a part in its own process, write its results, and return what went wrong."""
    code = f'from {MODULE} import main_of_part; main_of_part({name!r}, {device!r}, {rounds})'
    process = subprocess.Popen(
        [sys.executable, '-c', code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that its own processes can be stopped with it
    )
    try:
        output, _ = process.communicate(timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f'{name}: stopped after {seconds:.0f} s'
    if process.returncode:
        return f'{name}: ended with {process.returncode}'
    results = json.loads(output.splitlines()[-1])
    found = dict(machine=machine(), command=command(MODULE), rounds=rounds, results=results)
    atomic_write(out / f'{name}_{device}.json', json.dumps(found, indent=1) + '\n')
    return None


@quiet()
def main_of_part(name: str, device: str, rounds: int) -> None:
    """Print the results of a part as one line of JSON."""
    torch.manual_seed(0)
    print(json.dumps(PARTS[name](device, rounds)))


@command_line
@quiet()
def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    parser.add_argument('--rounds', type=positive, help='default: 10; on the CPU 1')
    parser.add_argument('--minutes', type=positive, default=8, help='time for all parts')
    parser.add_argument('--parts', nargs='+', choices=[*PARTS], default=[*PARTS])
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks/results')
    with as_usage_error('bad arguments'):
        args = parser.parse_args()
    if args.device == 'cuda':
        with as_usage_error('it needs a GPU; for a trial: --device cpu --out FOLDER'):
            torch.zeros(1, device='cuda')
    end, problems = time.monotonic() + 60 * args.minutes, []
    for name in args.parts:
        rounds = args.rounds or (10 if args.device == 'cuda' else 1)
        problem = run_part(name, args.device, rounds, end - time.monotonic(), args.out)
        say(problem or f'{name}: written to {args.out / f"{name}_{args.device}.json"}')
        problems += [problem] if problem else []
    if problems:
        sys.exit(1)


if __name__ == '__main__':
    main()
