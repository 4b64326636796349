"""Weight decay and learning rate of each parameter, by what it is, whatever the user's keys."""

import logging

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from nf_plugins.models import FixupResNet, NFNet, NFRegNet, NFResNet, PWSResNet, ResNetV2

NF = dict(type='nf_plugins.NFResNet', depth=[1, 1, 1, 1], base_channels=4)
PWS = dict(type='nf_plugins.PWSResNet', depth=18, base_channels=4, stem_channels=4)
NO_DECAY = {'gain', 'alpha', 'skip_gain', 'bias'}
"""The last part of the names of what the papers do not decay, in networks without norms."""
MINE = 'nf_plugins.NFOptimWrapperConstructor'


def classifier(backbone, channels):
    init_default_scope('mmpretrain')
    neck = dict(type='nf_plugins.ReLUNeck', in_channels=channels)
    head = dict(type='LinearClsHead', num_classes=3, in_channels=channels)
    return MODELS.build(dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head))


def groups(model, paramwise_cfg=None, constructor=MINE, **optimizer):
    optimizer = {**dict(type='SGD', lr=0.1, weight_decay=0.01), **optimizer}
    cfg = dict(constructor=constructor, optimizer=optimizer, paramwise_cfg=paramwise_cfg)
    wrapper = build_optim_wrapper(model, cfg)
    found = {id(g['params'][0]): g for g in wrapper.optimizer.param_groups}
    return {name: found[id(p)] for name, p in model.named_parameters() if p.requires_grad}


KEYS = {
    'backbone': dict(lr_mult=0.1),
    'backbone.layer1': dict(lr_mult=0.1, decay_mult=0.5),
    'skip_gain': dict(lr_mult=2.0),
    'layer1.0.conv1': dict(lr_mult=0.0),
    'gain': dict(decay_mult=0.0),
}


@pytest.mark.parametrize('keys', [{}, *[{k: v} for k, v in KEYS.items()], KEYS], ids=str)
@pytest.mark.parametrize(('backbone', 'channels'), [(NF, 128), (PWS, 32)], ids=['nf', 'pws'])
def test_custom_keys_set_the_lr_and_the_decay_of_weights_alone(backbone, channels, keys):
    model = classifier(backbone, channels)
    options = dict(custom_keys=keys) if keys else None
    theirs = groups(model, dict(custom_keys=keys), 'DefaultOptimWrapperConstructor')
    norms = {
        f'{name}.{leaf}'
        for name, module in model.named_modules()
        if isinstance(module, nn.GroupNorm)
        for leaf in ('weight', 'bias')
    }
    kinds = set()
    for name, group in groups(model, options).items():
        kind = name.rpartition('.')[2]
        assert group['lr'] == theirs[name]['lr'], name
        weight = kind not in NO_DECAY and name not in norms
        expected = theirs[name]['weight_decay'] if weight else 0.0
        assert group['weight_decay'] == expected, name
        kinds.add(kind)
    assert kinds >= ({'gain', 'skip_gain', 'bias'} if backbone is NF else {'alpha', 'bias'})


@pytest.mark.parametrize('kind', ['gain', 'bias', 'norm'])
def test_each_kind_can_be_decayed(kind):
    found = groups(classifier(PWS, 32), {f'{kind}_decay_mult': 0.5})
    for name, group in found.items():
        is_norm, leaf = 'norm' in name, name.rpartition('.')[2]
        own = 'norm' if is_norm else dict(alpha='gain', bias='bias').get(leaf, 'weight')
        expected = 0.005 if own == kind else 0.01 if own == 'weight' else 0.0
        assert group['weight_decay'] == expected, name
    assert 0.005 in {group['weight_decay'] for group in found.values()}


def test_fixup_has_scalar_biases_and_scales():
    model = FixupResNet([1, 1, 1, 1], base_channels=4)
    found = groups(model)
    assert sum(p.ndim == 0 for p in model.parameters()) == 4 * 7 + 2
    for name, p in model.named_parameters():
        assert found[name]['weight_decay'] == (0.0 if p.ndim == 0 else 0.01), name


def test_an_optimizers_own_weight_decay_counts():
    """AdamW decays by 0.01 where a config says nothing."""
    cfg = dict(constructor=MINE, optimizer=dict(type='AdamW', lr=0.1))
    model = NFResNet([1, 1, 1, 1], base_channels=4)
    wrapper = build_optim_wrapper(model, cfg)
    found = {id(g['params'][0]): g['weight_decay'] for g in wrapper.optimizer.param_groups}
    for name, p in model.named_parameters():
        assert found[id(p)] == (0.0 if name.endswith(tuple(NO_DECAY)) else 0.01), name


def test_mmengines_own_names_would_have_decayed_them():
    """What the constructor is there for; if this fails, mmengine has changed."""
    keys = dict(custom_keys={'backbone': dict(lr_mult=0.1), 'gain': dict(decay_mult=0.0)})
    found = groups(classifier(NF, 128), keys, 'DefaultOptimWrapperConstructor')
    assert found['backbone.layer1.0.skip_gain']['weight_decay'] == 0.01


@pytest.mark.parametrize('bad', [dict(gain_decay_mult=-1), dict(bias_decay_mult='no'),
                                 dict(layer_decay_rate=0)])  # fmt: skip
def test_bad_options(bad):
    with pytest.raises((ValueError, TypeError), match=next(iter(bad))):
        groups(NFResNet([1, 1, 1, 1], base_channels=4), bad)


def test_one_line_instead_of_hundreds():
    model = classifier({**NF, 'frozen_stages': 1}, 128)
    logger = MMLogger.get_current_instance()
    lines = {}
    for verbose in (False, True):
        records = []
        handler = logging.Handler(logging.INFO)
        handler.emit = records.append
        logger.addHandler(handler)
        groups(model, dict(verbose=verbose))
        logger.removeHandler(handler)
        lines[verbose] = [record.getMessage() for record in records]
    assert len(lines[False]) == 1
    assert 'gain (decay x 0)' in lines[False][0]
    assert len(lines[True]) == 1 + 15 + 13  # weights have no setting of their own


DEEP = [
    NFResNet([2, 1, 3, 1], base_channels=4),
    NFRegNet(arch=dict(base='b0', depths=(1, 2, 1, 1))),
    NFNet(arch=dict(base='f0', depths=(1, 1, 2, 1), widths=(8, 8, 8, 8), group_width=2)),
    PWSResNet(18, base_channels=4, stem_channels=4),
    ResNetV2([1, 1, 1, 2], base_channels=4),
    FixupResNet([1, 2, 1, 1], base_channels=4),
]


@pytest.mark.parametrize('backbone', DEEP, ids=lambda b: type(b).__name__)
def test_layers_are_counted_in_the_order_of_the_computation(backbone):
    """The order of first use in a forward pass, seen by hooks, is the order of the layers."""
    names = {id(p): name for name, p in backbone.named_parameters()}
    order = []

    def note(module, args):
        order.extend(names[id(p)] for p in module.parameters(recurse=False))

    hooks = [m.register_forward_pre_hook(note) for m in backbone.modules()]
    with torch.no_grad():
        backbone(torch.randn(2, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    layers = [backbone.get_layer_depth(f'backbone.{n}', 'backbone.') for n in order]
    used = [layer for layer, _ in layers if order]
    head, count = backbone.get_layer_depth('head.fc.weight', 'backbone.')
    assert {number for _, number in layers} == {count}
    assert head == count - 1
    inner = [u for n, u in zip(order, used) if not n.startswith('bias')]  # of the whole network
    assert inner == sorted(inner)
    assert set(inner) == set(range(count - 1))
    if isinstance(backbone, FixupResNet):
        ends = [backbone.get_layer_depth(n)[0] for n in ('bias1', 'bias2')]
        assert ends == [0, count - 1]


def test_layer_decay_is_that_of_mmpretrain_and_leaves_gains_without_weight_decay():
    model = classifier(NF, 128)
    theirs = groups(
        model,
        dict(layer_decay_rate=0.5),
        'mmpretrain.LearningRateDecayOptimWrapperConstructor',
    )
    for name, group in groups(model, dict(layer_decay_rate=0.5)).items():
        assert group['lr'] == pytest.approx(theirs[name]['lr']), name
        no_decay = name.rpartition('.')[2] in NO_DECAY
        assert group['weight_decay'] == (0.0 if no_decay else 0.01), name
    rates = [g['lr'] for g in theirs.values()]
    assert max(rates) == 0.1
    assert min(rates) == pytest.approx(0.1 * 0.5**5)  # four blocks and the stem before the head


def test_layer_decay_without_a_classifier_around_the_backbone():
    model = nn.ModuleDict(dict(backbone=MODELS.build(NF), head=nn.Linear(2, 2)))
    model.backbone = model['backbone']
    found = groups(model, dict(layer_decay_rate=0.5))
    assert found['head.weight']['lr'] == 0.1
    assert found['backbone.layer4.0.conv1.weight']['lr'] == 0.05
    with pytest.raises(ValueError, match='get_layer_depth, got a Linear'):
        groups(nn.Linear(2, 2), dict(layer_decay_rate=0.5))
