"""mmengine, mmcv, and the libraries on top of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.model import BaseAveragedModel, BaseModel, is_model_wrapper
from torch import Tensor, nn

from nf_plugins.config import PARTS
from nf_plugins.registry import ADAPTERS

from ..parts import parts_of
from .arguments import Arguments, parameters_of
from .base import Adapter


@ADAPTERS.register_module(name='mm')
class MMAdapter(Adapter):
    """mmengine, mmcv, mmpretrain, mmdet and mmsegmentation."""

    random_depth = ('droppath', 'dropconnect')
    switched_off = ('with_cp',)
    not_gains = ('*token*', 'beta')
    # Only of mmcv's transforms, and of those that are made like them, the width comes first.
    image_sizes = {
        **dict.fromkeys(('Resize', 'RandomResize'), ('scale', 'wh')),
        'RandomChoiceResize': ('scales', 'wh'),
        'Pad': ('size', 'wh'),
        'CenterCrop': ('crop_size', 'wh'),
        'ResizeEdge': ('scale', 'hw'),
        **dict.fromkeys(('RandomResizedCrop', 'EfficientNetRandomCrop'), ('scale', 'hw')),
        **dict.fromkeys(('RandomCrop', 'EfficientNetCenterCrop'), ('crop_size', 'hw')),
        **dict.fromkeys(
            ('MAERandomResizedCrop', 'RandomResizedCropAndInterpolationWithTwoPic'), ('size', 'hw')
        ),
        **dict.fromkeys(('mmdet.RandomCrop', 'mmdet.CenterCrop'), ('crop_size', 'wh')),
    }

    def unwrap(self, model: Any) -> nn.Module | None:
        if isinstance(model, BaseAveragedModel) or is_model_wrapper(model):
            return model.module
        return None

    def fed(self, model: nn.Module) -> nn.Module | None:
        """Of a whole model, which reads batches of data, the part that reads the images."""
        parts = (getattr(model, name, None) for name in PARTS if isinstance(model, BaseModel))
        return next((part for part in parts if isinstance(part, nn.Module)), None)

    def prepare(
        self, model: nn.Module, batch: int, device: torch.device
    ) -> list[tuple[Any, str, Any]]:
        """Return masks of ones for mmpretrain's sparse layers (SparK), which share one mask."""
        names = {type(module).__module__ for _, module in parts_of(model).modules}
        modules = {sys.modules.get(name) for name in names}
        helpers = {getattr(module, 'SparseHelper', None) for module in modules} - {None}
        seen = torch.ones(batch, 1, 1, 1, dtype=torch.bool, device=device)
        return [(helper, '_cur_active', seen) for helper in helpers]

    def call(self, model: nn.Module, inputs: Any) -> Arguments | None:
        """Of a batch of data for a whole model what its preprocessor makes of it.

        In train mode the model computes its losses if there are data samples, else its outputs.
        Backbones of masked pre-training get None as the mask: nothing is masked.
        """
        if isinstance(inputs, Mapping) and 'inputs' in inputs:
            if isinstance(model, BaseModel):
                return _batch(model, inputs)
            names = {parameter.name for parameter in parameters_of(model)}
            if 'inputs' not in names:
                inputs = inputs['inputs']
                inputs = torch.stack(inputs) if isinstance(inputs, list) else inputs
        if not isinstance(inputs, Tensor):
            return None
        masks = _masks(model)
        return Arguments((inputs,), dict.fromkeys(masks))


def _batch(model: BaseModel, batch: Mapping) -> Arguments:
    """Return a batch, raw or preprocessed already, as the arguments of a whole model."""
    images = batch['inputs']
    raw = not isinstance(images, Tensor) or not images.is_floating_point()
    # Not in training mode: batch augmentations would change the images by chance.
    data = model.data_preprocessor(dict(batch), training=False) if raw else batch
    data = {**data}
    losses = model.training and data.get('data_samples') is not None
    return Arguments((), {'mode': 'loss' if losses else 'tensor', **data})


def _masks(model: nn.Module) -> list[str]:
    """Return the names of the arguments beside the images that a backbone of mm wants."""
    if not any(cls.__module__.startswith(('mm', 'nf_plugins')) for cls in type(model).__mro__):
        return []
    return [
        p.name
        for p in parameters_of(model)[1:]
        if p.name == 'mask' or (p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD)
    ]
