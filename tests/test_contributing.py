"""The examples of CONTRIBUTING.md work, and the files that it names exist."""

import re

import pytest
import torch
from torch import nn

from nf_plugins.registry import ADAPTERS, MODELS, RULES
from nf_plugins.spp import analyze

from .conftest import ROOT

TEXT = (ROOT / 'CONTRIBUTING.md').read_text('utf-8')


@pytest.fixture
def defined():
    """What the examples define; the registries forget it afterwards."""
    registries = (MODELS, MODELS.parent, RULES, ADAPTERS)
    before = [dict(registry._module_dict) for registry in registries]
    found = {}
    for example in re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL):
        names = {'__name__': 'example'}  # an example has all imports that it needs
        exec(example, names)
        found |= names
    yield found
    for registry, modules in zip(registries, before):
        registry._module_dict.clear()
        registry._module_dict.update(modules)


def test_the_examples(defined):
    net = MODELS.build(dict(type='MyNet'))
    assert net(torch.randn(1, 3, 64, 64))[0].shape == (1, 512, 2, 2)
    with torch.no_grad():
        net.stem.conv1.gain.mul_(1e4)
    profile = analyze(net, torch.randn(2, 3, 64, 64))
    assert 'my_rule' in {verdict['rule'] for verdict in profile.verdicts()}

    conv = MODELS.build(dict(type='MyWS', in_channels=4, out_channels=8, kernel_size=3))
    squares = conv.standardize().square().sum((1, 2, 3))
    assert torch.allclose(squares, torch.ones(8), atol=1e-5)

    text = defined['profiles_to_markdown']([profile])
    assert text.count('\n') == len(profile.blocks) + 2
    assert len({line.count('|') for line in text.splitlines()}) == 1

    class Scaled(nn.Sequential):
        my_scale = True

        def forward(self, x, scale):
            return x + scale * super().forward(x)

    profile = analyze(Scaled(nn.Conv2d(3, 3, 1), nn.ReLU()), torch.randn(2, 3, 8, 8))
    assert [block.kind for block in profile.blocks[-1:]] == ['residual']


def test_the_files_exist():
    names = re.findall(r'`((?:nf_plugins|tests|tools|benchmarks|docs|configs)/[\w./]*\w/?)`', TEXT)
    assert len(names) > 10
    missing = [name for name in names if not (ROOT / name).exists()]
    assert [name for name in missing if 'my_' not in name] == []
