"""Backbones, necks, and configs of timm's normalizer-free models."""

from . import backbones, necks
from .backbones import *  # noqa: F403
from .necks import *  # noqa: F403
from .timm_models import timm_config, timm_model

__all__ = [*backbones.__all__, *necks.__all__, 'timm_config', 'timm_model']
