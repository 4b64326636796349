"""torch and torchvision."""

from torch import nn
from torch.optim.swa_utils import AveragedModel

from nf_plugins.registry import ADAPTERS

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

    def unwrap(self, model: nn.Module) -> nn.Module | None:
        inner = model.module if isinstance(model, AveragedModel) else None
        inner = getattr(model, '_orig_mod', inner)
        return inner if isinstance(inner, nn.Module) else None
