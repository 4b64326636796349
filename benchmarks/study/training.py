"""The training of one network, and what is measured in it."""

from __future__ import annotations

import copy
import functools
import math
import statistics
import time
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import ROOT, quiet
from nf_plugins.config import load_config
from nf_plugins.functional.agc import unitwise_norm
from nf_plugins.spp import analyze

from .data import Data, Images, batches, load_data
from .runs import CHANCE, NETWORKS, Run

VAL_IMAGES, TEST_IMAGES = 500, 1000
CURVES = ('avg_sq_mean', 'avg_var', 'grad_avg_sq_mean', 'grad_avg_var')
FILM_EVERY = 3
"""Steps between two frames of the film of the collapse."""


@functools.cache
def config_of(network: str, blocks: int) -> Config:
    """Return the config of a network at a depth, for images of 16x16."""
    about = NETWORKS[network]
    change = {f'model.{key}': value for key, value in about.change.items()}
    cfg = load_config(str(ROOT / 'configs' / about.config), change)
    # The last stage keeps its 2x2 positions.
    cfg.model.backbone.update(depth=(blocks,) * 4, strides=(2, 2, 2, 1))
    return cfg


def build(run: Run) -> tuple[nn.Module, Any]:
    """Build the network of a run, and its optimizer with the config's parameter groups."""
    cfg = config_of(run.network, run.blocks)
    model = MODELS.build(copy.deepcopy(cfg.model))
    model.init_weights()
    options = copy.deepcopy(cfg.optim_wrapper)
    options.optimizer.lr = run.lr
    if run.clip_factor is None:
        options.type = 'OptimWrapper'
        options.pop('clip_grad', None)
    else:
        options.clip_grad.clip_factor = run.clip_factor
    optimizer = build_optim_wrapper(model, options)
    optimizer.initialize_count_status(model, 0, 1)
    return model, optimizer


def schedule(step: int, steps: int) -> float:
    """Compute the factor of the learning rate.

    It rises linearly from 0.1 to 1 in a tenth of the steps, and then falls to 0 as a cosine.
    """
    warmup = steps / 10
    if step < warmup:
        return 0.1 + 0.9 * step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def short(value: float) -> float | None:
    """Round for the file of the results; None if it is not finite."""
    return float(f'{value:.4g}') if math.isfinite(value) else None


def prediction(model: nn.Module, data: Data) -> dict[str, Any]:
    """Analyse a network before its first step: what the rules say, and the size of the signal.

    ``errors`` are the rules of severity "error" that find something: these predict a failure.
    ``growth`` is the largest mean square of a block's output relative to the stem's, and
    ``gradient`` the same for the gradient, relative to the last block.
    """
    profile = analyze(model, data.train.images[:32], backward=True, state='init')
    verdicts = profile.verdicts()
    signal = [b.avg_var + b.avg_sq_mean for b in profile.blocks]
    gradient = [b.grad_avg_var for b in profile.blocks if b.grad_avg_var is not None]
    growth = max(signal, key=lambda x: math.inf if math.isnan(x) else x) / max(signal[0], 1e-30)
    backward = max(gradient) / max(gradient[-1], 1e-30) if gradient else math.nan
    return dict(
        errors=sorted({v['rule'] for v in verdicts if v['severity'] == 'error'}),
        warnings=sorted({v['rule'] for v in verdicts if v['severity'] == 'warning'}),
        growth=short(growth),
        gradient=short(backward),
    )


def frame(model: nn.Module, images: Tensor) -> dict[str, list]:
    """Measure signal and gradient at one moment, for the film."""
    blocks = analyze(model, images, mode='asis', backward=True, evidence=False).blocks
    found = {name: [getattr(block, name) for block in blocks] for name in CURVES}
    return {name: [None if x is None else short(x) for x in v] for name, v in found.items()}


def count_clipped(model: nn.Module, clip_factor: float, counts: dict[str, list[int]]) -> None:
    """Count the units whose gradient AGC clips, and all units, by stage and kind of parameter."""
    for name, p in model.named_parameters():
        if p.grad is None or name == 'head.fc.weight':
            continue
        stage = name.split('.')[1] if name.startswith('backbone.') else 'classifier'
        kind = 'SkipInit gains' if name.endswith('skip_gain') else name.rsplit('.', 1)[1]
        clipped = unitwise_norm(p.grad) >= clip_factor * unitwise_norm(p).clamp(min=1e-3)
        count = counts.setdefault(f'{stage} {kind}', [0, 0])
        count[0] += int(clipped.sum())
        count[1] += clipped.numel()


@torch.no_grad()
def accuracy(model: nn.Module, data: Images, images: int, batch_size: int = 100) -> float | None:
    """Return the accuracy in percent on the first images; None if an output is not finite."""
    right = 0
    for x, labels in zip(*(part[:images].split(batch_size) for part in data)):
        logits = model(x)
        if not bool(torch.isfinite(logits).all()):
            return None
        right += int((logits.argmax(1) == labels).sum())
    return round(100 * right / min(images, len(data.labels)), 3)


def outcome(run: Run, model: nn.Module, data: Data, losses: list[float]) -> dict[str, Any]:
    """Test a network after its training.

    An accuracy of outputs that are not finite counts as guessing. In the part on batch sizes,
    ``batch_accuracy`` is the one with the statistics of batches of the same size, on 512 images.
    """
    model.eval()
    finite = math.isfinite(losses[-1])
    val, test = (
        accuracy(model, images, number) if finite else None
        for images, number in ((data.val, VAL_IMAGES), (data.test, TEST_IMAGES))
    )
    if val is None or test is None:
        return dict(accuracy=10.0, val_accuracy=10.0, loss=None, failed='non-finite')
    tail = losses[-max(1, len(losses) // 10) :]
    found = dict(
        accuracy=test,
        val_accuracy=val,
        loss=short(statistics.fmean(tail)),
        failed='chance' if test <= CHANCE else None,
    )
    if run.part == 'batch':
        model.train()
        found['batch_accuracy'] = accuracy(model, data.test, 512, run.batch_size)
    return found


def train(run: Run) -> dict:
    """Train and test one network, and return a row of the results."""
    data = load_data()
    start, cpu_start = time.perf_counter(), time.process_time()
    torch.manual_seed(run.seed)
    with quiet():
        model, optimizer = build(run)
    more: dict[str, Any] = {}
    if run.part == 'depth':
        more['prediction'] = prediction(model, data)
    torch.manual_seed(run.seed)
    order = batches(len(data.train.labels), run.batch_size, run.steps)
    losses: list[float] = []
    model.train()
    for step, chosen in enumerate(order):
        for group in optimizer.param_groups:
            group['lr'] = run.lr * schedule(step, run.steps)
        loss = F.cross_entropy(model(data.train.images[chosen]), data.train.labels[chosen])
        losses.append(loss.item())
        if run.part == 'collapse' and step % FILM_EVERY == 0:
            now = frame(model, data.train.images[:32])
            more.setdefault('film', []).append(dict(step=step, loss=short(losses[-1]), **now))
        if not math.isfinite(losses[-1]):
            break
        optimizer.backward(loss)
        if run.part == 'agc' and run.clip_factor is not None:
            count_clipped(model, run.clip_factor, more.setdefault('clipped', {}))
        optimizer.step()
        optimizer.zero_grad()
    return dict(
        **vars(run),
        **outcome(run, model, data, losses),
        **more,
        seconds=round(time.perf_counter() - start, 2),
        cpu_seconds=round(time.process_time() - cpu_start, 2),
    )


def attempt(run: Run) -> dict:
    """Return a row of the results, or the error of the run."""
    try:
        return train(run)
    except Exception as error:
        return dict(error=f'cannot train {run}: {error}')
