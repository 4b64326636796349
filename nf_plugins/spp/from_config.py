"""Measure the backbone of a config: what the tools, the training hook and the docs share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from nf_plugins.checkpoint.fit import backbone_weights
from nf_plugins.config import build_backbone, called, load_config, part_name
from nf_plugins.datasets.sources import as_usage_error_with_data
from nf_plugins.errors import as_usage_error
from nf_plugins.models.hub import find_in_place_of_config

from .analyze import analyze
from .inputs import (
    INPUTS,
    config_input_size,
    dataset_batch,
    gaussian_batch,
    image_batch,
    image_channels,
    image_files,
)
from .profile import SignalProfile
from .report.records import Record

__all__ = ['ConfiguredBackbone', 'Options', 'measure_config']


@dataclass(frozen=True)
class Options:
    """How a config is measured.

    Args:
        input: 'gaussian' for unit Gaussian noise; 'train', 'val' or 'test' for the config's own
            data; or an image file, or a folder of images.
        batch_size: Images in the batch.
        input_size: Side, or height and width, of the noise; None for the size that the config
            trains on.
        mode: 'train', 'eval', or 'asis' for each module as it is while the network trains.
        seed: Seed of the weights at initialisation and of the noise.
        device: Where the network runs.
        backward: Measure the gradient, too.
        unit_gain: Measure with gains that are zero at one.
        module: Path in the model of the part to measure, '' for all of it; None for the backbone.
    """

    input: str = 'gaussian'
    batch_size: int = 8
    input_size: Sequence[int] | None = None
    mode: str = 'train'
    seed: int = 0
    device: str = 'cpu'
    backward: bool = False
    unit_gain: bool = False
    module: str | None = None


class ConfiguredBackbone:
    """The backbone of a config and one batch, to measure at initialisation or with checkpoints.

    Args:
        config: Path or name of the config.
        options: How it is measured.
        cfg_options: Settings to change in the config, as for ``--cfg-options``.

    Raises:
        UsageError: The config, its backbone, the batch or the device cannot be used.
    """

    def __init__(
        self, config: str, options: Options = Options(), cfg_options: dict | None = None
    ) -> None:
        with as_usage_error(f'cannot use the device {options.device}'):
            torch.empty(0, device=options.device)
        self.config, self.options = config, options
        self.cfg = load_config(config, cfg_options)
        self.part = part_name(self.cfg, config, options.module)
        self.backbone = build_backbone(self.cfg, config, options.seed, self.part)
        self._has_weights = False  # of a checkpoint
        self.inputs, self.input_info = self._make_inputs()

    def _make_inputs(self) -> tuple[Tensor, dict[str, Any]]:
        """Return the batch, and what it is."""
        options, cfg = self.options, self.cfg
        if options.input == 'gaussian':
            batch = gaussian_inputs(
                cfg, self.backbone, options.batch_size, options.input_size, options.seed
            )
            return batch, dict(kind='gaussian')
        if options.input in INPUTS:
            about = f'cannot read the {options.input} data of {self.config}'
            with as_usage_error_with_data(about, cfg, [f'{options.input}_dataloader']):
                batch = dataset_batch(cfg, options.input, options.batch_size, options.seed)
            return batch, dict(kind=options.input)
        size = input_size(cfg, options.input_size)
        channels = image_channels(self.backbone)
        with as_usage_error(f'cannot read the images of {options.input}'):
            files = image_files(options.input)[: options.batch_size]
            batch = image_batch(cfg, files, size, channels, options.seed)
        return batch, dict(kind='images', path=options.input)

    def measure(self, checkpoint: str | None = None) -> SignalProfile:
        """Measure at initialisation, or with the weights of a checkpoint.

        Args:
            checkpoint: The checkpoint, or ``PATH#KEY``.

        Raises:
            UsageError: The checkpoint does not fit, or the network does not run on the batch.
        """
        if checkpoint is not None:
            return self._measure_weights(
                checkpoint, backbone_weights(checkpoint, self.backbone, self.part)[0]
            )
        if self._has_weights:
            self.backbone = build_backbone(self.cfg, self.config, self.options.seed, self.part)
            self._has_weights = False
        return self._measure()

    def check(self, checkpoints: Sequence[str]) -> None:
        """Raise a UsageError unless all checkpoints fit, before any of them is measured."""
        for path in checkpoints:
            backbone_weights(path, self.backbone, self.part)

    def measure_training(
        self, checkpoints: Sequence[str], advance: Callable[[], None] = lambda: None
    ) -> list[Record]:
        """Measure checkpoints of one training, all on the same batch.

        Args:
            checkpoints: The checkpoints, each a path or ``PATH#KEY``.
            advance: Called after each.

        Returns:
            Their records in the order of the iterations; in the given order if a checkpoint does
            not say its epoch and iteration.

        Raises:
            UsageError: A checkpoint does not fit; see :meth:`check`.
        """
        records = []
        for path in checkpoints:
            state, meta = backbone_weights(path, self.backbone, self.part, quiet=True)
            epoch, iteration = (
                meta[key] if type(meta.get(key)) is int else None for key in ('epoch', 'iter')
            )
            profile = self._measure_weights(path, state)
            records.append(Record(profile, epoch, iteration, path))
            advance()
        if all(record.epoch is not None and record.iter is not None for record in records):
            records.sort(key=lambda record: (record.iter, record.epoch))
        return records

    def _measure_weights(self, checkpoint: str, state: dict[str, Tensor]) -> SignalProfile:
        # Every weight of the backbone is in the checkpoint, so none of those before is left.
        self.backbone.load_state_dict(state)
        self._has_weights = True
        profile = self._measure(f' with {checkpoint}')
        profile.checkpoint = checkpoint
        profile.label += f' ({Path(checkpoint).stem})'
        return profile

    def _measure(self, weights: str = '') -> SignalProfile:
        options, shape = self.options, self.inputs.shape
        part = {} if self.part == 'backbone' else dict(module=self.part)
        what = f'{shape[0]} inputs of {"x".join(map(str, shape[1:]))}'
        about = f'cannot run {called(self.part)} of {self.config}{weights} on {what}'
        about += f' (see --batch-size, --input-size, --module) on {options.device}'
        if options.mode == 'asis':
            self.backbone.train()  # as it is while it trains, with frozen norms in eval mode
        with as_usage_error(about):
            profile = analyze(
                self.backbone.to(options.device),
                self.inputs.to(options.device),
                mode=options.mode,
                seed=options.seed,
                backward=options.backward,
                unit_gain=options.unit_gain,
                module='',  # all of what was built
                input_info={**part, **self.input_info},
                label=Path(self.config).stem,
                state='trained' if self._has_weights else None,
            )
        profile.config = self.config
        return profile


def measure_config(
    config: str,
    checkpoint: str | None = None,
    options: Options = Options(),
    cfg_options: dict | None = None,
) -> SignalProfile:
    """Measure the backbone of a config at initialisation, or with the weights of a checkpoint.

    Args:
        config: Path or name of the config; or published weights by name, such as
            ``timm://dm_nfnet_f0.dm_in1k``, which are then the checkpoint, if there is no other.
        checkpoint: The checkpoint, or ``PATH#KEY``, or the name of published weights.
        options: How it is measured.
        cfg_options: Settings to change in the config, as for ``--cfg-options``.

    Returns:
        The profile, with the names of the config and of the checkpoint.

    Raises:
        UsageError: Something of this cannot be used; the message says what.

    Example:
        >>> profile = measure_config('nf-resnet_digits', options=Options(batch_size=2))
        >>> profile.label, [verdict['rule'] for verdict in profile.verdicts()]
        ('nf-resnet_digits', ['zero_branch'])
    """
    with as_usage_error('cannot find the weights'):
        published = find_in_place_of_config(config)
    if published is not None:
        config, checkpoint = published.config, checkpoint or published.uri
    return ConfiguredBackbone(config, options, cfg_options).measure(checkpoint)


def input_size(cfg: Config, size: Sequence[int] | None = None) -> tuple[int, int]:
    """Return height and width of the images: as given, or as the config trains."""
    with as_usage_error(f'cannot tell the input size of {cfg.filename or "the config"}'):
        size = size or config_input_size(cfg)
    return size[0], size[-1]


def gaussian_inputs(
    cfg: Config, backbone: nn.Module, batch_size: int, size: Sequence[int] | None, seed: int
) -> Tensor:
    """Return unit Gaussian noise of the size and the channels that the backbone of a config takes.

    Args:
        cfg: The config.
        backbone: Its backbone.
        batch_size: Images.
        size: Their side, or height and width; None for the size that the config trains on.
        seed: Seed of the noise.
    """
    shape = (batch_size, image_channels(backbone), *input_size(cfg, size))
    with as_usage_error(f'cannot make noise of shape {shape}'):
        return gaussian_batch(shape, seed)
