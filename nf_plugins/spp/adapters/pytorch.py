"""torch and torchvision."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from nf_plugins.registry import ADAPTERS

from .arguments import Arguments
from .base import Adapter


@ADAPTERS.register_module(name='torch')
class TorchAdapter(Adapter):
    """torch and torchvision."""

    random_depth = ('stochasticdepth',)
    not_gains = ('bias',)
    image_sizes = {
        f'torchvision.{name}': ('size', 'hw')
        for name in ('Resize', 'RandomResizedCrop', 'RandomCrop', 'CenterCrop')
    }

    def unwrap(self, model: Any) -> nn.Module | None:
        if isinstance(model, torch.export.ExportedProgram):
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', FutureWarning)  # torch warns of itself
                return torch.export.unflatten(model)  # with the modules that it was made of
        inner = model.module if isinstance(model, AveragedModel) else None
        inner = getattr(model, '_orig_mod', inner)
        return inner if isinstance(inner, nn.Module) else None

    def fed(self, model: nn.Module) -> nn.Module | None:
        """Of a module that cannot be called, the backbone."""
        if getattr(type(model), 'forward', None) is not nn.Module.forward:
            return None
        backbone = getattr(model, 'backbone', None)
        return backbone if isinstance(backbone, nn.Module) else None

    def call(self, model: nn.Module, inputs: Any) -> Arguments | None:
        """Of torchvision's detectors: a list of images, and targets in train mode."""
        kinds = {cls.__module__ for cls in type(model).__mro__}
        if not any(kind.startswith('torchvision.models.detection') for kind in kinds):
            return None
        if not hasattr(model, 'transform'):  # a part of a detector
            return None
        given = Arguments.of(inputs)
        images, *others = given.args or (None,)
        if images is None or others or given.kwargs:
            return None
        images = list(images)
        return Arguments((images, boxes_in(images, model)) if model.training else (images,))


def boxes_in(images: list[Tensor], model: nn.Module) -> list[dict[str, Tensor]]:
    """Return targets for a detector, as it needs some in train mode: the centre of each image."""
    predictor = getattr(getattr(model, 'roi_heads', None), 'keypoint_predictor', None)
    keypoints = predictor.kps_score_lowres.out_channels if predictor is not None else 0
    targets = []
    for image in images:
        height, width = image.shape[-2:]
        box = image.new_tensor([[width / 4, height / 4, width * 3 / 4, height * 3 / 4]])
        mask = torch.zeros((1, height, width), dtype=torch.uint8, device=image.device)
        mask[:, height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = 1
        points = image.new_tensor([[width / 2, height / 2, 1]]).expand(1, keypoints, 3)
        label = torch.ones(1, dtype=torch.int64, device=image.device)
        target = dict(boxes=box, labels=label, masks=mask)
        targets.append({**target, **(dict(keypoints=points.clone()) if keypoints else {})})
    return targets
