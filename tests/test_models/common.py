"""A tiny network of every backbone, with parameters that nothing leaves out.

The second stage has two blocks, as the tests of hooks read ``layer2[1]``.
"""

import torch
from mmengine.registry import MODELS
from torch import nn

import nf_plugins.models  # noqa: F401 (registers them)

SMALL = dict(depth=(1, 2, 1, 1), base_channels=4, skipinit=1.0)
NETWORKS = {
    'NFResNet': dict(type='NFResNet', **SMALL),
    'NFResNet, SE': dict(type='NFResNet', **SMALL, attention='se'),
    'NFResNet, ECA': dict(type='NFResNet', **SMALL, attention='eca', downsample='avg'),
    'NFResNet, SiLU': dict(type='NFResNet', **SMALL, act_cfg=dict(type='SiLU')),
    'NFResNet, symmetric': dict(type='NFResNet', **SMALL, padding='symmetric'),
    'NFRegNet': dict(
        type='NFRegNet', arch=dict(base='b0', width_mult=0.25, depths=(1, 2, 1, 1)), skipinit=1.0
    ),
    'NFNet': dict(
        type='NFNet',
        arch=dict(base='f0', width_mult=1 / 16, group_width=4, depths=(1, 2, 1, 1)),
        skipinit=1.0,
    ),
    'PWSResNet': dict(
        type='PWSResNet',
        depth=18,
        base_channels=4,
        stem_channels=4,
        conv_cfg=dict(type='PWS', initalpha=True),
    ),
    'ResNetV2': dict(type='ResNetV2', depth=(1, 2, 1, 1), base_channels=4, attention='se'),
    'SkipInitResNet': dict(type='SkipInitResNet', **SMALL),
    'FixupResNet': dict(type='FixupResNet', depth=(1, 2, 1, 1), base_channels=4),
}


def build(name: str, folded: bool = False, **options: object) -> nn.Module:
    """A network in evaluation mode."""
    net = MODELS.build({**NETWORKS[name], **options}).eval()
    with torch.no_grad():
        for key, p in net.named_parameters():
            if any(part in key.rpartition('.')[2] for part in ('gain', 'bias', 'alpha', 'scale')):
                p.uniform_(0.5, 1.5)
            elif not p.any():  # the last convolutions of Fixup's branches
                p.normal_(std=0.1)
    if folded:
        net.switch_to_deploy()
    return net.requires_grad_(False)


def images(height: int, width: int) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height))
