"""The networks of this package."""

from torch import nn

from nf_plugins.registry import ADAPTERS

from .base import Adapter, Expectation


@ADAPTERS.register_module(name='nf_plugins')
class OwnAdapter(Adapter):
    """The networks of this package; their blocks know the variance that they are made for."""

    random_depth = ('droppath',)
    switched_off = ('with_cp', 'fold_scale')  # with `fold_scale` branches end scaled
    not_gains = ('beta',)

    def expectation(self, block: nn.Module) -> Expectation | None:
        alpha, var = getattr(block, 'alpha', None), getattr(block, 'expected_var', None)
        return None if alpha is None or var is None else Expectation(alpha, var)
