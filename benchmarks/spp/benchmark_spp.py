"""What an analysis costs beside a bare forward pass, and beside timm's.

    python -m benchmarks.spp.benchmark_spp --out benchmarks/results/spp_cost.json

Times of the networks are medians of processor seconds on one thread, of
``benchmarks/spp/ratios.py``; those beside timm's are medians of interleaved runs in this process.
Memory is the peak resident set of fresh processes beyond that of the same process before the
pass. ``--before TREE`` measures another source tree in turn with this one, such as that of an
earlier commit.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

import nf_plugins.models  # noqa: F401 (registers them)
from benchmarks.common import ROOT, command, machine, quiet
from benchmarks.cost.measuring import interleaved
from nf_plugins.cli.arguments import ArgumentParser, positive
from nf_plugins.cli.command_line import command_line
from nf_plugins.errors import as_usage_error
from nf_plugins.spp import analyze
from nf_plugins.utils.files import atomic_write

from .ratios import NETWORKS, SHAPE, bare

MODULE = 'benchmarks.spp.benchmark_spp'
RATIOS = Path(__file__).parent / 'ratios.py'


def timm_nf_resnet50() -> nn.Module:
    import timm

    return timm.create_model('nf_resnet50')


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


def child(tree: Path, *args: str) -> Any:
    """Run ``ratios.py`` with the package of a source tree; what it prints."""
    # Freed memory goes back to the system at once. Else the peak depends on the history.
    environment = {**os.environ, 'PYTHONPATH': str(tree), 'OMP_NUM_THREADS': '1'}
    environment |= {'MALLOC_MMAP_THRESHOLD_': '65536'} if '--peak' in args else {}
    out = subprocess.run(
        [sys.executable, str(RATIOS), *args],
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return json.loads(out.stdout.splitlines()[-1])


def ratios(trees: dict[str, Path], networks: list[str], rounds: int, runs: int) -> dict:
    """Ratio of each job's seconds to those of a bare pass: the median of some processes.

    Args:
        trees: Name -> source tree; they take turns.
        networks: Names of networks.
        rounds: Rounds of one process.
        runs: Processes per tree.
    """
    found: dict[str, dict] = {}
    for network in networks:
        of_tree: dict[str, list[dict]] = {name: [] for name in trees}
        for _ in range(runs):
            for name, tree in trees.items():
                of_tree[name].append(child(tree, network, '--rounds', str(rounds)))
        found[network] = {
            name: {
                'bare_seconds': statistics.median(t['bare'] for t in times),
                **{
                    job: round(statistics.median(t[job] / t['bare'] for t in times), 3)
                    for job in times[0]
                    if job != 'bare'
                },
            }
            for name, times in of_tree.items()
        }
        print(network, found[network], flush=True)
    return found


def peaks(trees: dict[str, Path], networks: list[str]) -> dict:
    """Peak memory of an analysis and of a bare pass in MiB, and their ratio."""
    found: dict[str, dict] = {}
    for network in networks:
        for name, tree in trees.items():
            mib = {job: child(tree, network, '--peak', job) for job in ('bare', 'analyze')}
            ratio = round(mib['analyze'] / mib['bare'], 3)
            found.setdefault(network, {})[name] = dict(mib=mib, ratio=ratio)
    return found


@command_line
@quiet()
def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=positive, default=9)
    parser.add_argument('--runs', type=positive, default=3, help='processes per network')
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument('--before', type=Path, help='source tree to compare with')
    parser.add_argument('--ratios', action='store_true', help='leave out what is beside them')
    parser.add_argument('--out', type=Path, help='JSON file')
    with as_usage_error('bad arguments'):
        args = parser.parse_args()
    trees = dict(before=args.before.resolve()) if args.before else {}
    trees['now'] = ROOT
    results: dict[str, Any] = {}
    results['ratio to a bare pass'] = ratios(trees, args.networks, args.rounds, args.runs)
    results['peak memory'] = peaks(trees, [n for n in args.networks if n.endswith('ResNet-50')])
    if not args.ratios:
        results.update(beside_others(args.rounds))
    found = dict(machine=dict(**machine(), input=SHAPE), command=command(MODULE), results=results)
    if args.before:
        found['command'] = found['command'].replace(str(args.before), 'TREE')
    text = json.dumps(found, indent=1) + '\n'
    print(text)
    if args.out:
        with as_usage_error(f'cannot write {args.out}'):
            atomic_write(args.out, text)


def beside_others(rounds: int) -> dict[str, Any]:
    """Seconds beside those of timm's function and of a training; of a network of 600 layers."""
    x = torch.randn(SHAPE)
    results: dict[str, Any] = {}
    nf = timm_nf_resnet50()
    seconds = medians(
        dict(
            bare=lambda: bare(nf, x),
            analyze=lambda: analyze(nf, x),
            timm=lambda: timm_spp(nf, x),
        ),
        rounds,
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

    return results


if __name__ == '__main__':
    main()
