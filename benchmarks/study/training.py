"""The training of one network, and what is measured in it."""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import quiet
from nf_plugins.spp import analyze

from .data import Data, Images, load_data
from .fitting import accuracy, build, fit
from .landscape import descent, valley
from .multiplicity import fit_multiplied
from .results import short
from .runs import CHANCE, Run
from .transfer import transfer

VAL_IMAGES, TEST_IMAGES = 500, 1000
CURVES = ('avg_sq_mean', 'avg_var', 'grad_avg_sq_mean', 'grad_avg_var')
FILM_FROM, FILM_EVERY = 12, 3
"""The collapse has a frame for each of the first 12 steps, and then for every third step."""
LANDSCAPES = 5
"""Moments of a training at which the loss along the gradient is measured."""


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
    elif run.part == 'agc' and run.clip_factor is not None:
        more['clipped'] = {}

    def look(step: int, loss: float, chosen: Tensor) -> None:
        if run.part == 'collapse' and (step < FILM_FROM or step % FILM_EVERY == 0):
            now = frame(model, data.train.images[:32])
            more.setdefault('film', []).append(dict(step=step, loss=short(loss), **now))
        elif run.part == 'landscape' and step % max(1, run.steps // LANDSCAPES) == 0:
            batch = Images(*(x[chosen] for x in data.train))
            more.setdefault('descent', []).append(dict(step=step, **descent(model, batch)))

    torch.manual_seed(run.seed)
    if run.part == 'multiplicity':
        losses = fit_multiplied(run, model, optimizer, data.train)
    else:
        losses = fit(run, model, optimizer, data.train, look, more.get('clipped'))
    found = outcome(run, model, data, losses)
    if run.part == 'landscape' and found['failed'] != 'non-finite':
        more['valley'] = valley(model, data.train, plane=run.seed == 0)
    elif run.part == 'transfer':
        more['transfer'] = transfer(run, model)
    return dict(
        **vars(run),
        **found,
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
