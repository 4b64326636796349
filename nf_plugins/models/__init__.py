"""Backbones and necks."""

from .backbones import *  # noqa: F403
from .necks import *  # noqa: F403
