"""Each parameter of every shipped config: is it decayed, is it clipped.

What is expected follows from the module that holds a parameter; the configs work by names.
"""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import nn

from nf_plugins.engine import agc_optim_wrapper
from nf_plugins.layers import Derf, DyT, PWSConv2d, ScaledWSConv2d
from nf_plugins.models.backbones.nf_block import NFBlock

from ..conftest import without_memory
from .test_configs import CONFIGS, load, mark, shallow

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, DyT, Derf)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)

# Brock et al. 2021: weights are decayed and nothing else.
BROCK = {'weight', 'classifier'}
# PWSConv and SPPs: everything is decayed but the alpha of PWS.
ALL = {'weight', 'classifier', 'bias', 'norm'}
OF_PWS = ('_1xb64_in1k.py', 'resnet34-bn', 'resnet34-gn', 'pws-resnet34')


def role(module, leaf, classifier):
    """What a parameter is, by the module that holds it."""
    if isinstance(module, NORMS):
        return 'norm'
    if isinstance(module, ScaledWSConv2d) and leaf == 'gain':
        return 'gain'
    if isinstance(module, PWSConv2d) and leaf == 'alpha':
        return 'alpha'
    if isinstance(module, NFBlock) and leaf == 'skip_gain':
        return 'skip gain'
    if isinstance(module, LAYERS) and leaf == 'bias':
        return 'bias'
    if isinstance(module, LAYERS) and leaf == 'weight':
        return 'classifier' if module is classifier else 'weight'
    if leaf in ('cls_token', 'pos_embed', 'gamma'):  # of mmpretrain's ViT and ConvNeXt
        return 'other'
    raise AssertionError(f'{leaf} of a {type(module).__name__} has no role')


def clipped_parameters(wrapper, model, monkeypatch, clip_factor):
    """The ids of what the wrapper hands to the clipping."""
    clipped = set()

    def record(params, **kwargs):
        assert kwargs == dict(clip_factor=clip_factor, eps=1e-3)
        clipped.update(id(p) for p in params)
        return torch.zeros(())

    monkeypatch.setattr(agc_optim_wrapper, 'adaptive_clip_grad_', record)
    if getattr(wrapper, 'has_agc', False):
        wrapper.initialize_count_status(model, 0, 1)
        for p in model.parameters():
            p.grad = torch.empty_like(p)
        wrapper._clip_grad()
    return clipped


@pytest.mark.parametrize('name', [mark(name) for name in CONFIGS])
def test_decayed_and_clipped(name, monkeypatch):
    cfg = shallow(load(name), 2)
    clip_factor = 0.1 if 'fashion-mnist' in name else 0.01  # ours, the papers'
    with without_memory():
        model = MODELS.build({**cfg.model, 'train_cfg': None})
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    settings = {id(p): group for group in wrapper.param_groups for p in group['params']}
    clipped = clipped_parameters(wrapper, model, monkeypatch, clip_factor)
    decayed = ALL if any(p in name for p in OF_PWS) or '-step_' in name else BROCK
    optimizer = cfg.optim_wrapper.optimizer

    has_agc = name.startswith('nfnet/') or ('nf-resnet' in name and 'fashion-mnist' in name)
    found = set()
    for prefix, module in model.named_modules():
        for leaf, p in module.named_parameters(recurse=False):
            kind, key = role(module, leaf, model.head.fc), f'{prefix}.{leaf}'
            expected = optimizer.weight_decay if kind in decayed else 0.0
            assert settings[id(p)]['weight_decay'] == expected, key
            assert settings[id(p)]['lr'] == optimizer.lr, key
            assert (id(p) in clipped) == (has_agc and kind != 'classifier'), key
            found.add(kind)
    assert found >= {'weight', 'classifier', 'bias'}
    if name.startswith('nf'):
        assert found == {'weight', 'classifier', 'bias', 'gain', 'skip gain'}
    if name.startswith('pws'):
        assert found == {'weight', 'classifier', 'bias', 'alpha', 'norm'}
