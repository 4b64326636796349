"""Find the residual blocks of a backbone."""

from __future__ import annotations

from torch import nn

from nf_plugins.models.backbones.base import ResidualBlock

# By name, as this package does not import mmpretrain.
_MMPRETRAIN_BLOCKS = {
    ('mmpretrain.models.backbones.resnet', 'BasicBlock'),
    ('mmpretrain.models.backbones.resnet', 'Bottleneck'),
}


def _is_block(module: nn.Module) -> bool:
    bases = {(base.__module__, base.__name__) for base in type(module).__mro__}
    return isinstance(module, ResidualBlock) or bool(bases & _MMPRETRAIN_BLOCKS)


def find_blocks(backbone: nn.Module) -> dict[str, nn.Module]:
    """The residual blocks of a backbone, by their module path, in order of definition.

    Known are the blocks of this package and of mmpretrain's ResNet family. They add
    their input, or what their ``downsample`` makes of it, to their branch.

    Args:
        backbone: A backbone.

    Returns:
        Module path -> block.

    Raises:
        ValueError: No known block is found.

    Example:
        >>> from nf_plugins.models import NFResNet
        >>> list(find_blocks(NFResNet(26, base_channels=8)))[:3]
        ['layer1.0', 'layer1.1', 'layer2.0']
    """
    blocks = {name: module for name, module in backbone.named_modules() if _is_block(module)}
    if not blocks:
        raise ValueError(
            f'{type(backbone).__name__} has no residual block that can be measured: supported are '
            "the backbones of nf_plugins and mmpretrain's ResNet family"
        )
    return blocks
