"""transformers."""

from nf_plugins.registry import ADAPTERS

from .base import Adapter


@ADAPTERS.register_module(name='transformers')
class TransformersAdapter(Adapter):
    """transformers: each family has its own stochastic depth (``SwinDropPath``)."""

    random_depth = ('droppath',)
    not_gains = ('*token*',)
