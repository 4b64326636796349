"""Networks of the study, and the training of one network."""

from __future__ import annotations

import copy
import functools
import math
import statistics
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import ROOT, quiet
from nf_plugins.config import load_config
from nf_plugins.spp import analyze
from nf_plugins.spp.plot import METRICS

CONFIGS = ROOT / 'configs'


class Network(NamedTuple):
    """Network of the study, which is one line in the figures.

    Args:
        label: Its name in tables and figures.
        config: Path of the config in the folder of the configs.
        change: Changes of the config's model, such as half the width to save time.
        agc: Whether adaptive gradient clipping is used.
    """

    label: str
    config: str
    change: dict[str, Any]
    agc: bool = False


_HALF = {'backbone.stem_channels': 8, 'backbone.base_channels': 8, 'head.in_channels': 64}
# In these short runs, a SkipInit gain that starts at 0, as in the configs, would stay close to 0.
# With AGC a step changes it by at most lr * clip_factor * eps, times ten because of the momentum.
_HALF_NF = {
    'backbone.base_channels': 8,
    'neck.in_channels': 256,
    'head.in_channels': 256,
    'backbone.skipinit': 1.0,
}
_NF = 'nf_resnet/nf-resnet_digits.py'
NETWORKS = {
    'bn': Network('batch norm', 'baselines/resnet-bn_digits.py', _HALF),
    'gn': Network(
        'group norm',
        'baselines/resnet-gn_digits.py',
        {**_HALF, 'backbone.norm_cfg.num_groups': 4},
    ),
    'pws': Network('PWS', 'pws_resnet/pws-resnet_digits.py', {**_HALF, 'neck.in_channels': 64}),
    'nf-agc': Network('NF, AGC', _NF, _HALF_NF, agc=True),
    'nf': Network('NF, no AGC', _NF, _HALF_NF),
    'plain': Network('plain', 'baselines/resnet-plain_digits.py', _HALF),
}


METRIC_NAMES = ('index', 'name', 'kind', *METRICS)


@dataclass(frozen=True)
class Setting:
    """Setting that all runs of a study share.

    Args:
        epochs: Passes over the training images. They determine the number of steps.
        min_steps: Least number of steps, for large batches.
        image_size: Side of the images.
        clip_factor: Threshold of AGC.
        test_images: Number of test images.
        reference: Batch size and learning rate of the runs for which, with seed 0, signal
            propagation is measured.
        chance: Test accuracy in percent; a run that is not better has learnt nothing.
    """

    epochs: float = 2.0
    min_steps: int = 120
    image_size: int = 12
    clip_factor: float = 0.1
    test_images: int = 359
    reference: tuple[int, float] = (64, 0.05)
    chance: float = 15.0

    def steps(self, images: int, batch_size: int) -> int:
        return max(self.min_steps, round(self.epochs * images / batch_size))


class Run(NamedTuple):
    """Run of a study: its network, batch size, learning rate and seed."""

    network: str
    batch_size: int
    lr: float
    seed: int


class Data(NamedTuple):
    """Normalised digits in memory.

    Args:
        train: ``(9, N, 1, H, W)``, the images at each of the nine positions of the config's random
            crop with one pixel of padding; index 4 is not shifted.
        train_labels: ``(N,)``.
        test: ``(M, 1, H, W)``.
        test_labels: ``(M,)``.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@functools.cache
def config_of(network: str) -> Config:
    about = NETWORKS[network]
    options = {f'model.{key}': value for key, value in about.change.items()}
    return load_config(str(CONFIGS / about.config), options)


@functools.cache
def load_images(image_size: int) -> Data:
    """Load the images of the digits configs into memory, at another size."""
    cfg = config_of('nf')
    mean, std = cfg.data_preprocessor.mean[0], cfg.data_preprocessor.std[0]
    pipeline = copy.deepcopy(cfg.test_pipeline)
    pipeline[0].scale = (image_size, image_size)
    found = []
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        items = list(DATASETS.build({**loader.dataset, 'pipeline': pipeline}))
        images = torch.stack([item['inputs'] for item in items]).float()
        found += [images, torch.tensor([int(item['data_samples'].gt_label) for item in items])]
    train, train_labels, test, test_labels = found
    padded = F.pad(train, (1, 1, 1, 1))
    crops = [
        padded[:, :, y : y + image_size, x : x + image_size] for y in range(3) for x in range(3)
    ]
    train = (torch.stack(crops) - mean) / std
    return Data(train, train_labels, (test - mean) / std, test_labels)


def load_data(setting: Setting) -> Data:
    """Load the images of a setting."""
    data, kept = load_images(setting.image_size), slice(setting.test_images)
    return data._replace(test=data.test[kept], test_labels=data.test_labels[kept])


def build(network: str, lr: float, clip_factor: float) -> tuple[nn.Module, Any]:
    """Build a network of a config, and its optimizer with the config's parameter groups."""
    cfg = config_of(network)
    model = MODELS.build(copy.deepcopy(cfg.model))
    model.init_weights()
    optim_wrapper = copy.deepcopy(cfg.optim_wrapper)
    optim_wrapper.optimizer.lr = lr
    if NETWORKS[network].agc:
        optim_wrapper.type = 'nf_plugins.AGCOptimWrapper'
        optim_wrapper.clip_grad = dict(
            type='agc', clip_factor=clip_factor, eps=1e-3, skip=['head.fc.weight']
        )
    optimizer = build_optim_wrapper(model, optim_wrapper)
    optimizer.initialize_count_status(model, 0, 1)
    return model, optimizer


def schedule(step: int, steps: int) -> float:
    """Compute the factor of the learning rate, as in the config.

    It rises linearly from 0.1 to 1 in a tenth of the steps, and then falls to 0 as a cosine.
    """
    warmup = steps / 10
    if step < warmup:
        return 0.1 + 0.9 * step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def signal(model: nn.Module, data: Data) -> list[dict]:
    """Measure signal propagation on 256 training images."""
    blocks = [b.to_dict() for b in analyze(model, data.train[4, :256], mode='train').blocks]
    return [{name: block[name] for name in METRIC_NAMES} for block in blocks]


def train(run: Run, setting: Setting) -> dict:
    """Train and test one network, and return a row of the results."""
    data = load_data(setting)
    start, cpu_start = time.perf_counter(), time.process_time()
    torch.manual_seed(run.seed)
    with quiet():
        model, optimizer = build(run.network, run.lr, setting.clip_factor)
    with_signal = (run.batch_size, run.lr) == setting.reference and run.seed == 0
    spp = dict(start=signal(model, data)) if with_signal else None
    torch.manual_seed(run.seed)
    images = len(data.train_labels)
    steps = setting.steps(images, run.batch_size)
    passes = math.ceil(steps * run.batch_size / images)
    order = torch.cat([torch.randperm(images) for _ in range(passes)])
    crops = torch.randint(9, order.shape)
    losses: list[float] = []
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group['lr'] = run.lr * schedule(step, steps)
        chosen = slice(step * run.batch_size, (step + 1) * run.batch_size)
        batch = data.train[crops[chosen], order[chosen]]
        loss = F.cross_entropy(model(batch), data.train_labels[order[chosen]])
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        optimizer.update_params(loss)
    model.eval()
    with torch.no_grad():
        logits = model(data.test)
    # A network whose outputs are not finite counts as guessing.
    finite = math.isfinite(losses[-1]) and bool(torch.isfinite(logits).all())
    correct = (logits.argmax(1) == data.test_labels).double().mean().item()
    accuracy = 100 * correct if finite else 10.0
    tail = losses[-max(1, steps // 10) :]
    row = dict(
        **run._asdict(),
        steps=steps,
        accuracy=round(accuracy, 3),
        train_loss=float(f'{statistics.fmean(tail):.5g}') if finite else None,
        diverged=None if accuracy > setting.chance else 'chance' if finite else 'non-finite',
    )
    if spp is not None:
        row['spp'] = dict(**spp, end=signal(model, data))
    return dict(
        **row,
        seconds=round(time.perf_counter() - start, 2),
        cpu_seconds=round(time.process_time() - cpu_start, 2),
    )


def attempt(run: Run, setting: Setting) -> dict:
    """Return a row of the results, or the error of the run."""
    try:
        return train(run, setting)
    except Exception as error:
        what = f'{run.network}, batch size {run.batch_size}, {setting.image_size} pixels'
        return dict(error=f'cannot train {what}: {error}')
