"""What an analysis costs beside a bare forward pass, and beside timm's.

    python -m benchmarks.spp.benchmark_spp --out benchmarks/results/spp.json

Times are medians of interleaved runs in one process; memory is the peak resident set of
fresh processes beyond that of the same process before the pass.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

import nf_plugins.models  # noqa: F401 (registers them)
from benchmarks.common import command, machine, quiet
from benchmarks.cost.measuring import forget_peak, interleaved, memory, peak_beyond
from nf_plugins.cli.arguments import ArgumentParser, positive
from nf_plugins.cli.command_line import command_line
from nf_plugins.errors import as_usage_error
from nf_plugins.spp import analyze
from nf_plugins.utils.files import atomic_write

MODULE = 'benchmarks.spp.benchmark_spp'
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


def medians(jobs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each job, which run in turn."""
    times = interleaved(jobs, rounds)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


@quiet()
def report_peak(job: str) -> None:
    """Print the MiB that a job needs beyond the model and the input."""
    model, x = resnet50(), torch.randn(SHAPE)
    small = torch.randn(2, 3, 64, 64)
    run = dict(bare=bare, analyze=analyze)[job]
    run(model, small)  # imports and libraries' own buffers
    forget_peak()
    before = memory('VmRSS')
    run(model, x)
    print(memory('VmHWM') - before)


@command_line
@quiet()
def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=positive, default=9)
    parser.add_argument('--out', type=Path, help='JSON file')
    with as_usage_error('bad arguments'):
        args = parser.parse_args()
    x, results = torch.randn(SHAPE), {}

    model = resnet50()
    seconds = medians(
        dict(bare=lambda: bare(model, x), analyze=lambda: analyze(model, x)), args.rounds
    )
    results['ResNet-50'] = dict(seconds=seconds, time_ratio=seconds['analyze'] / seconds['bare'])
    peaks = {
        job: statistics.median(peak_beyond(MODULE, 'report_peak', job) for _ in range(3))
        for job in seconds
    }
    results['ResNet-50'].update(peak_mib=peaks, memory_ratio=peaks['analyze'] / peaks['bare'])

    nf = timm_nf_resnet50()
    seconds = medians(
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
    seconds = medians(
        dict(step=lambda: step(cifar, batch), analyze=lambda: analyze(cifar, noise)), 3
    )
    results['SPPHook, ResNet-50 on CIFAR-100'] = dict(
        seconds=seconds, share_of_an_epoch=seconds['analyze'] / (391 * seconds['step'])
    )

    start = time.perf_counter()
    deep = MODELS.build(dict(type='ResNetV2', depth=600))
    analyze(deep, x)
    results['ResNet-V2-600'] = dict(seconds_with_building=time.perf_counter() - start)

    found = dict(machine=dict(**machine(), input=SHAPE), command=command(MODULE), results=results)
    text = json.dumps(found, indent=1) + '\n'
    print(text)
    if args.out:
        with as_usage_error(f'cannot write {args.out}'):
            atomic_write(args.out, text)


if __name__ == '__main__':
    main()
