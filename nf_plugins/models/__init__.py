"""Backbones, necks, and configs of timm's normalizer-free models."""

from . import backbones, hub, necks
from .backbones import *  # noqa: F403
from .hub import get_model, published_config
from .necks import *  # noqa: F403
from .timm_models import timm_config, timm_model

__all__ = [
    *backbones.__all__,
    *necks.__all__,
    'get_model',
    'hub',
    'published_config',
    'timm_config',
    'timm_model',
]
