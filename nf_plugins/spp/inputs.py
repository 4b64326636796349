"""Batches to measure with."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import Tensor, nn

INPUTS = ('gaussian', 'train', 'val', 'test')


def image_channels(backbone: nn.Module) -> int:
    """Channels of the images that a backbone takes: those of its first convolution."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return 3


def config_input_size(cfg: Config, default: int = 224) -> tuple[int, int]:
    """Height and width of the images that a config trains on.

    They are the last size in the training pipeline, else in the test pipeline.
    """
    for loader in ('train_dataloader', 'test_dataloader'):
        dataset = (cfg.get(loader) or {}).get('dataset', {})
        while 'pipeline' not in dataset and 'dataset' in dataset:  # dataset wrappers
            dataset = dataset['dataset']
        for transform in reversed(dataset.get('pipeline', [])):
            size = transform.get('crop_size', transform.get('scale'))
            if isinstance(size, int):
                return size, size
            if isinstance(size, (tuple, list)) and all(isinstance(s, int) for s in size):
                return (size[1], size[0]) if 'scale' in transform else (size[0], size[1])
    return default, default


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch, numpy and random for a block, and give their states back."""
    states = np.random.get_state(), random.getstate()
    with torch.random.fork_rng([]):
        try:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
        finally:
            np.random.set_state(states[0])
            random.setstate(states[1])


def gaussian_batch(shape: tuple[int, ...], seed: int) -> Tensor:
    """Unit Gaussian noise, the same for every device and network."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dataset_batch(cfg: Config, split: str, batch_size: int, seed: int) -> Tensor:
    """The first batch of a config's own data, after its pipeline and preprocessor.

    Args:
        cfg: A config with ``{split}_dataloader``.
        split: 'train', 'val' or 'test'.
        batch_size: Images.
        seed: Seed of the sampler and of the pipeline.

    Raises:
        ValueError: The config has no such data.
    """
    loader: Any = cfg.get(f'{split}_dataloader')
    if not loader:
        raise ValueError(f'the config has no {split}_dataloader')
    loader = {**loader, 'batch_size': batch_size, 'num_workers': 0, 'persistent_workers': False}
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor')
    preprocessor = dict(preprocessor or {})
    preprocessor.setdefault('type', 'ClsDataPreprocessor')
    with seeded(seed):
        data = next(iter(Runner.build_dataloader(loader, seed=seed)))
        batch = MODELS.build(preprocessor)(data, training=False)['inputs']
    if not isinstance(batch, Tensor):
        raise ValueError(f'the {split} data give no batch of images but {type(batch).__name__}')
    return batch
