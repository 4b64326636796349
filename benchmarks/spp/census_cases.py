"""The networks of the census, with inputs as small as they take."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Case:
    """One network.

    Args:
        package: Its name in Python.
        module: The module that it is from.
        name: Its name.
        build: Makes it.
        inputs: Arguments for it: positional ones in a tuple, or named ones in a dict.
    """

    package: str
    module: str
    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[nn.Module], Any]


def timm_cases() -> Iterator[Case]:
    """Of each module of timm the first network of each stem of names."""
    import timm

    for module in timm.list_modules():
        stems: dict[str, str] = {}
        for name in timm.list_models(module=module):
            stems.setdefault(_stem(name), name)
        for name in stems.values():
            yield Case(
                'timm', module, name, lambda name=name: timm.create_model(name), _timm_inputs
            )


_SIZES = (
    'pico femto atto nano micro mini tiny little small medium base large big huge giant gigantic'
    ' xxsmall xsmall xlarge xxlarge xxxlarge so150m so150m2 so400m'
)
_SIZES = f'{_SIZES} n t s m b l h g xs xxs xxt xl xxl p w f test'


def _stem(name: str) -> str:
    """A name without numbers and sizes."""
    words = [re.sub(r'\d+', '', word) for word in name.split('_')]
    return '_'.join(word for word in words if word and word not in _SIZES.split())


def _timm_inputs(model: nn.Module) -> tuple:
    cfg = getattr(model, 'pretrained_cfg', {}) or {}
    channels, height, width = cfg.get('input_size', (3, 224, 224))
    if not cfg.get('fixed_input_size') and height > 320:
        pooled = getattr(model, 'pooling_kernel_size', None)  # needs a multiple of 48
        height, width = (240, 240) if isinstance(pooled, int) else (224, 224)
    return (torch.randn(2, channels, height, width),)


def torchvision_cases() -> Iterator[Case]:
    """All networks of torchvision."""
    import torchvision

    for name in torchvision.models.list_models():
        builder = torchvision.models.get_model_builder(name)

        def build(name: str = name) -> nn.Module:
            options = dict(weights_backbone=None) if _is_dense(name) else {}
            if 'rcnn' in name or name.startswith(('retinanet', 'fcos')):
                options.update(min_size=128, max_size=128)
            return torchvision.models.get_model(name, weights=None, **options)

        module = builder.__module__.removeprefix('torchvision.models.')
        yield Case('torchvision', module, name, build, lambda m, k=module: _torchvision_inputs(k))


def _is_dense(name: str) -> bool:
    return any(
        word in name for word in ('rcnn', 'retinanet', 'fcos', 'ssd', 'fcn', 'deeplab', 'raspp')
    )


def _torchvision_inputs(module: str) -> tuple:
    if module.startswith('detection'):
        return ([torch.rand(3, 320, 320)],)
    if module.startswith('optical_flow'):
        return torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128)
    if module.startswith('video'):
        return (torch.randn(1, 3, 16, 224, 224),)
    size = 299 if module == 'inception' else 224
    return (torch.randn(2, 3, size, size),)


CASES: dict[str, Callable[[], Iterator[Case]]] = {
    'timm': timm_cases,
    'torchvision': torchvision_cases,
}
