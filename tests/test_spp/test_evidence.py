"""Each rule that reads evidence fires on its fault, and is silent on the healthy twin."""

import copy
import json

import pytest
import timm
import torch
import torchvision
from torch import nn

from nf_plugins.models import NFResNet
from nf_plugins.spp import SignalProfile, analyze
from nf_plugins.spp.evidence import Evidence
from nf_plugins.spp.structure import find_state

X = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def loud(net, x=X, **options):
    verdicts = analyze(net, x, **options).verdicts()
    return {v['rule']: v for v in verdicts if v['severity'] != 'info'}


def seeded(build):
    torch.manual_seed(0)
    return build()


RESNET = seeded(lambda: torchvision.models.resnet18())
VIT = seeded(lambda: timm.create_model('vit_tiny_patch16_224', img_size=64, depth=4))
NF = seeded(lambda: NFResNet(26, base_channels=16, skipinit=1.0))


class Sharp(nn.Module):
    def forward(self, x):
        return torch.tanh(30 * x)


def fill(path, value, rows=None):
    def change(net):
        parameter = net.get_parameter(path)
        parameter.data[: rows or len(parameter)] = value

    return change


def times(path, factor):
    return lambda net: net.get_parameter(path).data.mul_(factor)


def put(path, module):
    def change(net):
        owner, _, leaf = path.rpartition('.')
        setattr(net.get_submodule(owner), leaf, module)

    return change


def copy_half(path):
    def change(net):
        weight = net.get_parameter(path).data
        weight[len(weight) // 2 :] = weight[: len(weight) // 2]

    return change


def detach(path):
    def change(net):
        net.get_submodule(path).register_forward_pre_hook(lambda m, args: (args[0].detach(),))

    return change


def freeze(path):
    return lambda net: net.get_submodule(path).requires_grad_(False)


def set_alpha(value):
    return lambda net: [setattr(b, 'alpha', value) for b in net.modules() if hasattr(b, 'alpha')]


def share(net):
    net.blocks[3] = net.blocks[2]


FAULTS = [
    (RESNET, fill('layer2.1.conv1.weight', 0.0, 70), 'zero_weights', 'layer2.1'),
    (VIT, fill('blocks.2.mlp.fc1.weight', 0.0, 300), 'zero_weights', 'blocks.2'),
    (RESNET, copy_half('layer3.0.conv2.weight'), 'duplicate_channels', 'layer3.0'),
    (VIT, copy_half('blocks.1.attn.qkv.weight'), 'duplicate_channels', 'blocks.1'),
    (RESNET, times('layer2.1.conv2.weight', 30), 'branch_jump', 'layer2.1'),
    (VIT, times('blocks.1.mlp.fc2.weight', 30), 'branch_jump', 'blocks.1'),
    (NF, times('layer3.1.conv2.gain', 30), 'branch_jump', 'layer3.1'),
    (RESNET, fill('layer1.1.bn1.bias', -20.0, 40), 'dead_units', 'layer1.1'),
    (VIT, fill('blocks.3.mlp.fc1.bias', -20.0, 500), 'dead_units', 'blocks.3'),
    (RESNET, put('layer2.0.relu', Sharp()), 'saturated_units', 'layer2.0'),
    (VIT, put('blocks.1.mlp.act', Sharp()), 'saturated_units', 'blocks.1'),
    (VIT, times('blocks.2.attn.qkv.weight', 30), 'branch_jump', 'blocks.2'),
    (RESNET, put('layer3.1.bn2', nn.Identity()), 'norm_missing', 'layer3.1'),
    (VIT, put('blocks.1.norm2', nn.Identity()), 'norm_missing', 'blocks.1'),
    (VIT, put('blocks.1.drop_path1', nn.Dropout(0.95)), 'high_dropout', 'blocks.1'),
    (RESNET, detach('layer3.0'), 'no_gradient', 'layer2.1'),
    (RESNET, freeze('layer3.1'), 'frozen_weights', 'layer3.1'),
    (VIT, share, 'shared_weights', 'blocks.2'),
    (NF, set_alpha(1.0), 'off_theory', 'layer1.0'),
    (NF, put('layer2.1.conv2', nn.Conv2d(32, 32, 3, padding=1)), 'off_theory', 'layer2.1'),
    (RESNET, fill('layer4.1.bn2.bias', 3e4), 'low_precision', 'layer4.1'),
]


@pytest.mark.parametrize(
    ('net', 'change', 'rule', 'name'), FAULTS, ids=[f'{f[2]}-{f[3]}' for f in FAULTS]
)
def test_a_fault_is_named_with_its_block(net, change, rule, name):
    net = copy.deepcopy(net)
    change(net)
    found = loud(net)
    blamed = found[rule]['name']  # the block, or a part of it: blocks.2.mlp
    assert blamed == name or blamed.startswith(f'{name}.')
    assert found[rule]['cause'] and found[rule]['remedy']


@pytest.mark.parametrize('net', [RESNET, VIT, NF], ids=['ResNet', 'ViT', 'NF'])
@pytest.mark.parametrize('backward', [False, True])
def test_healthy_twins(net, backward):
    assert loud(net, backward=backward) == {}


@pytest.mark.parametrize(
    ('x', 'words'),
    [
        (torch.rand(4, 3, 64, 64) * 255, 'not normalized'),
        (torch.zeros(4, 3, 64, 64), 'all zero'),
        (torch.full((4, 3, 64, 64), 0.5), 'constant'),
        (X[:1].expand(4, -1, -1, -1).clone(), 'the same'),
        (X * 0.1 + 5, 'not centred'),
        (X / 1000, 'very small'),
    ],
)
def test_bad_inputs_come_first(x, words):
    (first, *_) = analyze(RESNET, x).verdicts()
    assert first['rule'] == 'bad_input'
    assert words in first['cause']


def test_norm_statistics():
    net = copy.deepcopy(RESNET)
    found = loud(net, mode='eval')['norm_statistics']
    assert 'those of a new layer' in found['cause']
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    net(X)
    assert find_state(net) == 'trained'
    assert 'norm_statistics' not in loud(net, mode='eval')
    assert 'do not fit' in loud(net, 8 * X, mode='eval')['norm_statistics']['cause']


def test_frozen_norms_are_seen_as_they_are():
    net = copy.deepcopy(RESNET).train()
    assert 'norm_statistics' not in loud(net, mode='asis')
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert 'norm_statistics' in loud(net, mode='asis')
    assert 'norm_statistics' not in loud(net)
    assert net.training and not net.bn1.training


def test_parameters_that_are_not_finite_are_named():
    net = copy.deepcopy(RESNET)
    net.layer2[1].conv1.weight.data[0, 0] = torch.nan
    (found,) = analyze(net, X).verdicts()
    assert found['rule'] == 'non_finite'
    assert 'layer2.1.conv1.weight' in found['cause']


def test_a_zero_head_is_by_design():
    net = copy.deepcopy(RESNET)
    nn.init.zeros_(net.fc.weight)
    (found,) = analyze(net, X, backward=True).verdicts()
    assert (found['rule'], found['severity']) == ('no_gradient', 'info')
    assert 'fc' in found['cause']


def test_the_state_is_found_or_given():
    assert [find_state(net) for net in (RESNET, VIT, NF)] == ['init'] * 3
    net = copy.deepcopy(VIT)
    for parameter in net.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    assert find_state(net) == 'trained'
    assert analyze(net, X).state == 'trained'
    assert analyze(net, X, state='init').state == 'init'
    with pytest.raises(ValueError, match='state must be one of init, trained'):
        analyze(net, X, state='new')


def test_evidence_is_written_and_read_back():
    net = copy.deepcopy(NF)
    net.layer2[1].conv1.gain.data[:40] = 0
    profile = analyze(net, X, backward=True)
    text = json.dumps(profile.to_dict(), allow_nan=False)
    found = SignalProfile.from_dict(json.loads(text))
    assert found == profile
    assert found.verdicts() == profile.verdicts() != []


def test_evidence_can_be_left_out():
    profile = analyze(NF, X, evidence=False)
    assert profile.evidence is None
    assert 'evidence' not in profile.to_dict()
    assert [b.avg_var for b in profile.blocks] == [b.avg_var for b in analyze(NF, X).blocks]


@pytest.mark.parametrize(
    'data',
    [
        [],
        {'norms': 3},
        {'norms': [3]},
        {'norms': [{'module': 'a', 'block': '1', 'op': 'b'}]},
        {'norms': [{'module': 'a'}]},
        {'options': [1]},
        {'inputs': [{'shape': [1.5], 'mean': 0.0, 'std': 1.0}]},
    ],
)
def test_wrong_evidence_is_refused(data):
    with pytest.raises(ValueError, match='evidence'):
        Evidence.from_dict(data)
