"""Seconds of a bare forward pass of one network, and of the analysis.

    python benchmarks/spp/ratios.py resnet50 --rounds 9

The benchmark of the analysis runs this file in fresh processes, with the package of one source
tree or another in the path. It prints one line of JSON: the median processor seconds of each job
on one thread, without Python's garbage collection. Processor time is what counts on a machine
that others use as well. With ``--peak JOB`` it prints instead the MiB that a job needs beyond the
model and the input.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

import nf_plugins.models  # noqa: F401 (registers them)
from nf_plugins.spp import analyze, find_residuals

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    'ResNet-50': lambda: MODELS.build(dict(type='mmpretrain.ResNet', depth=50)),
    'NFResNet-50': lambda: MODELS.build(dict(type='NFResNet', depth=50)),
    'MobileNetV3-small': lambda: timm.create_model('mobilenetv3_small_100'),
    'EfficientNet-B0': lambda: timm.create_model('efficientnet_b0'),
    'ViT-tiny': lambda: timm.create_model('vit_tiny_patch16_224'),
    'Swin-tiny': lambda: timm.create_model('swin_tiny_patch4_window7_224'),
    'ConvNeXt-tiny': lambda: timm.create_model('convnext_tiny'),
}
SHAPE = (8, 3, 224, 224)


def bare(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model(x)


def curves(model: nn.Module, x: Tensor) -> None:
    if 'evidence' in inspect.signature(analyze).parameters:
        analyze(model, x, evidence=False)
    else:  # version 0.1.0 has nothing beside the curves
        analyze(model, x)


JOBS: dict[str, Callable[[nn.Module, Tensor], object]] = {
    'bare': bare,
    'find_residuals': find_residuals,
    'curves': curves,
    'analyze': analyze,
}


def seconds(model: nn.Module, rounds: int) -> dict[str, float]:
    """Median processor seconds of each job; the jobs take turns."""
    x = torch.randn(SHAPE)
    times: dict[str, list[float]] = {name: [] for name in JOBS}
    for number in range(rounds + 1):
        for name, job in JOBS.items():
            gc.collect()
            gc.disable()
            start = time.process_time()
            job(model, x)
            if number:  # the first round warms up
                times[name].append(time.process_time() - start)
            gc.enable()
    return {name: statistics.median(values) for name, values in times.items()}


def peak(model: nn.Module, job: str) -> float:
    """MiB that a job needs beyond the model and the input (Linux)."""
    x = torch.randn(SHAPE)
    JOBS[job](model, torch.randn(SHAPE)[:1])  # imports and buffers of libraries
    gc.collect()
    Path('/proc/self/clear_refs').write_text('5')
    before = _memory('VmRSS')
    JOBS[job](model, x)
    return _memory('VmHWM') - before


def _memory(field: str) -> float:
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('network', choices=NETWORKS)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--peak', choices=JOBS)
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    model = NETWORKS[args.network]()
    model.train()
    print(json.dumps(peak(model, args.peak) if args.peak else seconds(model, args.rounds)))


if __name__ == '__main__':
    main()
