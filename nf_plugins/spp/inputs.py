"""Batches to measure with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import Tensor, nn

from nf_plugins.config import PARTS
from nf_plugins.registry import type_name
from nf_plugins.utils.checks import check_integers

from .adapters import adapters, first
from .execution import seeded

INPUTS = ('gaussian', 'train', 'val', 'test')
IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


def image_channels(backbone: nn.Module) -> int:
    """Return the channels of the images that a backbone takes: those of its first convolution."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return 3


def config_input_size(cfg: Config, default: int = 224) -> tuple[int, int]:
    """Return height and width of the images that a config trains on.

    They are the ``img_size`` of the part that reads images (transformers are made for one
    size), else the last size in the training pipeline, else in the test pipeline.
    """
    parts = [part for name in PARTS if isinstance(part := cfg.get('model', {}).get(name), dict)]
    size = next(iter(parts), {}).get('img_size')
    if size:
        return (size, size) if isinstance(size, int) else (size[0], size[-1])
    for loader in ('train_dataloader', 'test_dataloader'):
        for transform in reversed(_pipeline(cfg, loader)):
            found = output_size(transform, cfg.get('default_scope') or '')
            if found:
                return found
    return default, default


def output_size(transform: Mapping, scope: str = '') -> tuple[int, int] | None:
    """Return height and width of the images that a transform makes, or None if it does not say.

    Args:
        transform: Its config.
        scope: The config's ``default_scope``: mmdet has transforms of the same names.

    Example:
        >>> output_size(dict(type='Resize', scale=(320, 192)))
        (192, 320)
        >>> output_size(dict(type='RandomResizedCrop', scale=(192, 320)))
        (192, 320)
    """
    kind = transform['type']
    if not isinstance(kind, str):  # a class, in configs of the new style
        kind = f'{kind.__module__.partition(".")[0]}.{kind.__name__}'
    *prefix, name = kind.replace('/', '.').split('.')
    scope = prefix[0] if prefix else scope
    default = ('crop_size', 'hw') if 'crop_size' in transform else ('scale', 'wh')
    sizes = {k: v for adapter in reversed(adapters()) for k, v in adapter.image_sizes.items()}
    key, order = sizes.get(f'{scope}.{name}') or sizes.get(name, default)
    if name == 'MultiView':  # the first kind of view
        inner = reversed(transform['transforms'][0])
        return first(output_size(each, scope) for each in inner)
    size = transform.get(key)
    if isinstance(size, (tuple, list)) and size and isinstance(size[-1], (tuple, list)):
        size = size[-1]  # of several, or a range
    if isinstance(size, int):
        return size, size
    if isinstance(size, (tuple, list)) and len(size) in (1, 2):
        if all(isinstance(side, int) and side > 0 for side in size):
            return (size[0], size[-1]) if order == 'hw' else (size[-1], size[0])
    return None


def _pipeline(cfg: Config, loader: str) -> list[dict]:
    dataset = (cfg.get(loader) or {}).get('dataset', {})
    while 'pipeline' not in dataset and 'dataset' in dataset:  # dataset wrappers
        dataset = dataset['dataset']
    return list(dataset.get('pipeline', []))


def gaussian_batch(shape: tuple[int, ...], seed: int) -> Tensor:
    """Return unit Gaussian noise, the same for every device and network."""
    check_integers('shape', shape, len(shape))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dataset_batch(cfg: Config, split: str, batch_size: int, seed: int) -> Tensor:
    """Read the first batch of a config's own data, after its pipeline and preprocessor.

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
    with seeded(seed):
        data = next(iter(Runner.build_dataloader(loader, seed=seed)), None)
    if data is None:
        raise ValueError(f'the {split} data set is empty')
    return _preprocess(cfg, data, f'the {split} data')


def _preprocess(cfg: Config, data: Any, what: str) -> Tensor:
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor')
    preprocessor = dict(preprocessor or {})
    preprocessor.setdefault('type', 'mmpretrain.ClsDataPreprocessor')
    batch = MODELS.build(preprocessor)(data, training=False)['inputs']
    if not isinstance(batch, Tensor):
        raise ValueError(f'{what} give no batch of images but {type(batch).__name__}')
    return batch


def image_files(path: str | Path) -> list[Path]:
    """Find an image file, or the images in a folder and below it, in the order of their names.

    Raises:
        ValueError: There is none.
    """
    path = Path(path)
    if path.is_dir():
        files = (p for p in path.rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES)
        found = sorted(p for p in files if p.is_file())
        if not found:
            raise ValueError(f'no images in {path} (looked for {", ".join(IMAGE_SUFFIXES)})')
        return found
    if not path.is_file():
        raise ValueError(f'there is no file or folder {path}')
    return [path]


def image_batch(
    cfg: Config, files: list[Path], size: tuple[int, int], channels: int, seed: int
) -> Tensor:
    """Read image files into a batch, with a config's own test pipeline and preprocessor.

    Args:
        cfg: A config. Without a test pipeline the images are resized to ``size``.
        files: The images.
        size: Height and width.
        channels: 1 reads them as grey images, where the pipeline does not read them.
        seed: Seed of the pipeline.
    """
    steps = _pipeline(cfg, 'test_dataloader')
    transforms = [t for t in steps if 'Annotations' not in type_name(t['type'])]
    if not transforms:
        transforms = [
            dict(type='Resize', scale=(size[1], size[0])),
            dict(type='mmpretrain.PackInputs'),
        ]
    if not type_name(transforms[0]['type']).endswith('LoadImageFromFile'):
        colour = 'grayscale' if channels == 1 else 'color'
        transforms.insert(0, dict(type='LoadImageFromFile', color_type=colour))
    # An exception says what is wrong with a file.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    with seeded(seed):
        pipeline = Compose(transforms)
        samples = [_sample(pipeline, file) for file in files]
    return _preprocess(cfg, pseudo_collate(samples), 'the images')


def _sample(pipeline: Compose, file: Path) -> dict:
    if file.is_file() and not file.stat().st_size:
        raise ValueError(f'{file} is empty')
    try:
        return pipeline(dict(img_path=str(file), img_id=0, gt_label=0))
    except Exception as error:  # of many images it is one
        raise ValueError(f'{file}: {error}') from error
