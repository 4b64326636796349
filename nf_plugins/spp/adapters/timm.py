"""timm."""

from torch import nn

from nf_plugins.registry import ADAPTERS

from .base import Adapter, Expectation


@ADAPTERS.register_module(name='timm')
class TimmAdapter(Adapter):
    """timm: ``NormFreeBlock`` has alpha and beta, but not the variance at its output."""

    random_depth = ('droppath',)
    not_gains = ('*token*',)

    def expectation(self, block: nn.Module) -> Expectation | None:
        alpha, beta = getattr(block, 'alpha', None), getattr(block, 'beta', None)
        if not isinstance(alpha, float) or not isinstance(beta, float):
            return None
        # Blocks of this package have both, too.
        return None if hasattr(block, 'expected_var') else Expectation(alpha)
