"""Against the PWSConv repository's values (tests/data/pwsconv_meta.json says how made)."""

import json

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from nf_plugins.layers import PWSConv2d
from nf_plugins.models import PWSResNet, ReLUNeck

from ..conftest import DATA, relative_error

META = json.loads((DATA / 'pwsconv_meta.json').read_text())


class Network(nn.Module):
    def __init__(self, case):
        super().__init__()
        meta = META[case]
        self.backbone = PWSResNet(
            meta['depth'],
            base_channels=meta['base_channels'],
            stem_channels=meta['base_channels'],
            stem='cifar' if meta['cls'] == 'ResNet_Cifar' else 'imagenet',
            conv_cfg={**meta['conv_cfg'], 'type': 'PWS'},
        )
        norm_cfg = dict(type='GN', num_groups=1)
        self.neck = ReLUNeck(self.backbone.feat_dim, norm_cfg=norm_cfg)

    def forward(self, x):
        feat = self.backbone(x)
        return feat[0], self.neck(feat)[0]


def load(case, prefix=''):
    arrays = np.load(DATA / f'{case}.npz')
    return {k[len(prefix) :]: torch.from_numpy(arrays[k]) for k in arrays if k.startswith(prefix)}


@pytest.mark.parametrize('case', ['cifar18_pws_fanout', 'r50_pws'])
def test_features_and_gradients(case):
    data, network = load(case), Network(case)
    params = {k: v for k, v in data.items() if k.startswith(('backbone.', 'neck.'))}
    network.load_state_dict(params)
    feat, pooled = network.train()(data['x'])
    assert relative_error(feat, data['feat']) < 1e-4
    assert relative_error(pooled, data['pooled']) < 1e-4
    (pooled * data['lin']).sum().backward()
    gradients = load(case, 'grad.')
    params = dict(network.backbone.named_parameters(prefix='backbone'))
    assert set(gradients) == set(params)
    for name, p in params.items():
        assert relative_error(p.grad, gradients[name]) < 1e-4, name
    with torch.no_grad():
        assert relative_error(network.eval()(data['x'])[1], data['pooled_eval']) < 1e-4


def test_initalpha_step():
    data, network = load('r50_pws'), Network('r50_pws')
    network.load_state_dict(load('r50_pws', 'init.'), strict=False)
    for module in network.modules():  # loaded weights count as trained, these are not
        if getattr(module, 'initalpha', False):
            module.alpha_initialized.fill_(False)
    network.train()(data['x_init'])
    after, state = load('r50_pws', 'after.'), network.state_dict()
    for name, value in after.items():
        assert relative_error(state[name], value) < 1e-4, name
    changed = {k for k, v in after.items() if not torch.equal(v, torch.ones_like(v))}
    firing = {
        f'{name}.alpha' for name, m in network.named_modules() if getattr(m, 'initalpha', False)
    }
    assert changed == firing
    assert len(firing) == 1 + 16 + 4  # stem, first convolutions, downsamplings


@pytest.mark.parametrize('case', META)
def test_parameter_counts(case):
    network = Network(case)
    assert sum(p.numel() for p in network.backbone.parameters()) == META[case]['params']


@pytest.mark.parametrize(
    ('depth', 'stem', 'style', 'avg_down'),
    [
        (18, 'cifar', 'pytorch', False),
        (34, 'imagenet', 'pytorch', True),
        (50, 'imagenet', 'caffe', True),
        (101, 'cifar', 'caffe', False),
        (152, 'imagenet', 'pytorch', False),
    ],
)
def test_every_depth_deploys(depth, stem, style, avg_down):
    net = MODELS.build(
        dict(
            type='nf_plugins.PWSResNet',
            depth=depth,
            stem=stem,
            style=style,
            avg_down=avg_down,
            base_channels=4,
            stem_channels=4,
            out_indices=(0, 1, 2, 3),
            dilations=(1, 1, 1, 2),
        )
    ).eval()
    x = torch.randn(1, 3, 65, 71)
    with torch.no_grad():
        before = net(x)
        net.switch_to_deploy()
        after = net(x)
    assert not any(isinstance(m, PWSConv2d) for m in net.modules())
    assert len(before) == 4
    for a, b in zip(after, before):
        assert relative_error(a, b) < 1e-5


def test_mm_options():
    net = PWSResNet(
        18, base_channels=4, stem_channels=4, frozen_stages=1, with_cp=True, drop_path_rate=0.2
    )
    frozen = {name.split('.')[0] for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {'conv1', 'norm1', 'layer1'}
    net.train()
    assert not net.layer1.training
    assert net.layer2.training
    twin = PWSResNet(18, base_channels=4, stem_channels=4).eval()
    twin.load_state_dict(net.state_dict())
    net.eval()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    for model in (net.double(), twin.double()):
        model(x)[0].square().sum().backward()
    for (name, p), q in zip(net.named_parameters(), twin.named_parameters()):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, q[1].grad, msg=name)


def test_depth_as_blocks_of_each_stage():
    """The blocks of depth 50 are (3, 4, 6, 3); other depths are refused."""
    shapes = [
        {k: v.shape for k, v in PWSResNet(d, base_channels=4, stem_channels=4).state_dict().items()}
        for d in (50, (3, 4, 6, 3))
    ]
    assert shapes[0] == shapes[1]
    assert len(PWSResNet((1, 2), num_stages=2, strides=(1, 2), dilations=(1, 1),
                         out_indices=(1,), base_channels=4).layer2) == 2  # fmt: skip
    for bad in (51, (3, 4, 6), (3, 4, 6, 0), '50'):
        with pytest.raises((TypeError, ValueError), match='depth'):
            PWSResNet(bad)
