"""Build, train and test one network."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import ROOT
from nf_plugins.config import load_config
from nf_plugins.functional.agc import unitwise_norm

from .data import Images, batches
from .runs import NETWORKS, Run

# A norm_cfg without a norm: mmpretrain and mmengine have no name for it.
if MODELS.get('Identity') is None:
    MODELS.register_module('Identity', module=nn.Identity)


@functools.cache
def config_of(network: str, blocks: int) -> Config:
    """Return the config of a network at a depth, for images of 16x16."""
    about = NETWORKS[network]
    change = {f'model.{key}': value for key, value in about.change.items()}
    cfg = load_config(str(ROOT / 'configs' / about.config), change)
    if cfg.model.backbone.type == 'VisionTransformer':
        cfg.model.backbone.update(img_size=16)
        cfg.model.backbone.arch.update(num_layers=blocks)
    else:  # the last stage keeps its 2x2 positions
        cfg.model.backbone.update(depth=(blocks,) * 4, strides=(2, 2, 2, 1))
    return cfg


def build(run: Run, **backbone: Any) -> tuple[nn.Module, Any]:
    """Build the network of a run, and its optimizer with the config's parameter groups.

    Args:
        run: The run.
        **backbone: More options of the backbone.
    """
    cfg = config_of(run.network, run.blocks)
    config = copy.deepcopy(cfg.model)
    config.backbone.update(backbone)
    model = MODELS.build(config)
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


def fit(
    run: Run,
    model: nn.Module,
    optimizer: Any,
    images: Images,
    look: Callable[[int, float, Tensor], None] = lambda step, loss, chosen: None,
    counts: dict[str, list[int]] | None = None,
    order: Iterable[Tensor] | None = None,
    augment: Callable[[Tensor], Tensor] = lambda x: x,
) -> list[float]:
    """Train a network until its last step, or until its loss is not finite.

    Args:
        run: Number of steps, batch size and learning rate.
        model: The network.
        optimizer: Its optimizer.
        images: The training images.
        look: Called before each update with the step, its loss, and the indices of its images.
        counts: Gets the units that AGC clips.
        order: The indices of the images of each step; None: random passes over all images.
        augment: Changes the images of a batch.

    Returns:
        The loss of each step.
    """
    losses: list[float] = []
    model.train()
    if order is None:
        order = batches(len(images.labels), run.batch_size, run.steps)
    for step, chosen in enumerate(order):
        for group in optimizer.param_groups:
            group['lr'] = run.lr * schedule(step, run.steps)
        loss = F.cross_entropy(model(augment(images.images[chosen])), images.labels[chosen])
        losses.append(loss.item())
        look(step, losses[-1], chosen)
        if not math.isfinite(losses[-1]):
            break
        optimizer.backward(loss)
        if counts is not None and run.clip_factor is not None:
            count_clipped(model, run.clip_factor, counts)
        optimizer.step()
        optimizer.zero_grad()
    return losses


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
