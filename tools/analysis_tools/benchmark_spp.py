"""What an analysis costs beside a bare forward pass, and beside timm's.

    python tools/analysis_tools/benchmark_spp.py --out benchmarks/results/spp.json

Times are medians of interleaved runs in one process; memory is the peak resident set of
fresh processes beyond that of the same process before the pass.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from torch import Tensor, nn

import nf_plugins.models  # noqa: F401 (registers them)
from nf_plugins.spp import analyze
from nf_plugins.utils import ArgumentParser, atomic_write, command_line, complaint

SHAPE = (8, 3, 224, 224)


def resnet50() -> nn.Module:
    return MODELS.build(dict(type='mmpretrain.ResNet', depth=50))


def timm_nf_resnet50() -> nn.Module:
    import timm

    return timm.create_model('nf_resnet50')


def bare(model: nn.Module, x: Tensor) -> None:
    model.train()
    with torch.no_grad():
        model(x)


def step(model: nn.Module, x: Tensor) -> None:
    """The passes of a training step."""
    model.train()
    model(x)[0].mean().backward()
    model.zero_grad(set_to_none=True)


def timm_spp(model: nn.Module, x: Tensor) -> None:
    from timm.utils.model import avg_ch_var, avg_ch_var_residual, avg_sq_ch_mean, extract_spp_stats

    locations = ['stages.?.?', 'stages.?.?', 'stages.?.?.conv3']
    with torch.no_grad():
        extract_spp_stats(
            model, locations, [avg_sq_ch_mean, avg_ch_var, avg_ch_var_residual], list(x.shape)
        )
    for module in model.modules():  # it leaves them there
        module._forward_hooks.clear()


def interleaved(jobs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each job, which run in turn."""
    times = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_beyond(job: str) -> float:
    """MiB that a fresh process needs for a job beyond the model and the input."""
    code = (
        f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); '
        f'import benchmark_spp; benchmark_spp.report_peak({job!r})'
    )
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    return float(out.stdout.split()[-1])


def report_peak(job: str) -> None:
    MMLogger.get_instance('mmengine').setLevel('ERROR')
    model, x = resnet50(), torch.randn(SHAPE)
    small = torch.randn(2, 3, 64, 64)
    run = dict(bare=bare, analyze=analyze)[job]
    run(model, small)  # imports and libraries' own buffers
    Path('/proc/self/clear_refs').write_text('5')  # forget the peak so far
    before = memory('VmRSS')
    run(model, x)
    print(memory('VmHWM') - before)


def memory(field: str) -> float:
    """A size of this process in MiB, as Linux says it."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


@command_line
def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--out', type=Path, help='JSON file')
    with complaint('bad arguments'):
        args = parser.parse_args()
    MMLogger.get_instance('mmengine').setLevel('ERROR')
    x, results = torch.randn(SHAPE), {}

    model = resnet50()
    seconds = interleaved(
        dict(bare=lambda: bare(model, x), analyze=lambda: analyze(model, x)), args.rounds
    )
    results['ResNet-50'] = dict(seconds=seconds, time_ratio=seconds['analyze'] / seconds['bare'])
    peaks = {job: statistics.median(peak_beyond(job) for _ in range(3)) for job in seconds}
    results['ResNet-50'].update(peak_mib=peaks, memory_ratio=peaks['analyze'] / peaks['bare'])

    nf = timm_nf_resnet50()
    seconds = interleaved(
        dict(
            bare=lambda: bare(nf, x),
            analyze=lambda: analyze(nf, x),
            timm=lambda: timm_spp(nf, x),
        ),
        args.rounds,
    )
    results['timm nf_resnet50'] = dict(
        seconds=seconds, ratio_to_timm=seconds['analyze'] / seconds['timm']
    )

    # SPPHook at its default interval on the CIFAR-100 config: 391 steps of 128 in an epoch.
    cifar = MODELS.build(dict(type='mmpretrain.ResNet_CIFAR', depth=50))
    batch, noise = torch.randn(128, 3, 32, 32), torch.randn(8, 3, 32, 32)
    seconds = interleaved(
        dict(step=lambda: step(cifar, batch), analyze=lambda: analyze(cifar, noise)), 3
    )
    results['SPPHook, ResNet-50 on CIFAR-100'] = dict(
        seconds=seconds, share_of_an_epoch=seconds['analyze'] / (391 * seconds['step'])
    )

    start = time.perf_counter()
    deep = MODELS.build(dict(type='ResNetV2', depth=600))
    analyze(deep, x)
    results['ResNet-V2-600'] = dict(seconds_with_building=time.perf_counter() - start)

    machine = dict(
        cpus=os.cpu_count(),
        machine=platform.machine(),
        python=platform.python_version(),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        input=SHAPE,
        command='python tools/analysis_tools/benchmark_spp.py',
    )
    text = json.dumps(dict(machine=machine, results=results), indent=1) + '\n'
    print(text)
    if args.out:
        with complaint(f'cannot write {args.out}'):
            args.out.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(args.out, text)


if __name__ == '__main__':
    main()
