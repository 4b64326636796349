"""mmengine, mmcv, and the libraries on top of them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from mmengine.model import BaseAveragedModel, is_model_wrapper
from torch import nn

from nf_plugins.registry import ADAPTERS

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

    def unwrap(self, model: nn.Module) -> nn.Module | None:
        wrapper = isinstance(model, BaseAveragedModel) or is_model_wrapper(model)
        inner = getattr(model, 'module' if wrapper else 'backbone', None)
        return inner if isinstance(inner, nn.Module) else None

    def prepare(
        self, model: nn.Module, batch: int, device: torch.device
    ) -> list[tuple[Any, str, Any]]:
        """Return masks of ones for mmpretrain's sparse layers (SparK), which share one mask."""
        modules = {sys.modules.get(type(module).__module__) for module in model.modules()}
        helpers = {getattr(module, 'SparseHelper', None) for module in modules} - {None}
        seen = torch.ones(batch, 1, 1, 1, dtype=torch.bool, device=device)
        return [(helper, '_cur_active', seen) for helper in helpers]

    def call(self, model: nn.Module, inputs: Any) -> Callable[[], Any] | None:
        """For masked pre-training, None as the mask says that nothing is masked."""
        try:
            parameters = list(inspect.signature(model.forward).parameters.values())[1:]
        except (TypeError, ValueError):  # a traced model has none
            return None
        masks = {
            p.name: None
            for p in parameters
            if p.name == 'mask' or (p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD)
        }
        return (lambda: model(inputs, **masks)) if masks else None
