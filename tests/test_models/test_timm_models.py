"""timm's models: the same weights give the same logits, through the converter tool."""

import re
import runpy
import sys

import pytest
import timm
import torch
from mmengine.registry import MODELS, init_default_scope

from nf_plugins.checkpoint import safe_load
from nf_plugins.models.hub import PUBLISHED
from nf_plugins.models.timm_models import TIMM_BACKBONES, timm_config

from ..conftest import ROOT, relative_error, sample, without_memory

NAMES = timm.list_models(module='nfnet')
LARGE = {name for name in NAMES if re.fullmatch(r'(dm_)?nfnet_f\d|eca_nfnet_l3', name)}
SMALL = [name for name in NAMES if name not in LARGE]


def parameter_count(model):
    return sum(p.numel() for p in model.parameters())


def build(name, num_classes=1000):
    init_default_scope('mmpretrain')
    return MODELS.build(timm_config(name, num_classes))


def test_every_model_is_known():
    assert set(TIMM_BACKBONES) == set(NAMES)


@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=[pytest.mark.slow] * (n in LARGE)) for n in NAMES]
)
def test_parameter_counts(name):
    with without_memory():
        count = parameter_count(timm.create_model(name))
        assert parameter_count(build(name)) == count
    assert (count >= 60e6) == (name in LARGE)


# The published ones are downloaded and converted in test_hub.py.
UNPUBLISHED = [n for n in SMALL if n not in {entry.name.partition('.')[0] for entry in PUBLISHED}]


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    sample(
        ['test_nfnet', *UNPUBLISHED],
        lambda name: not name.endswith(('101', '_b2', '_b3', '_b4', '_b5')),
    ),
)
def test_same_weights_same_logits(name, tmp_path, monkeypatch, capsys):
    theirs = timm.create_model(name, num_classes=10).eval()
    with torch.no_grad():
        for key, p in theirs.named_parameters():
            if 'gain' in key:
                p.uniform_(0.5, 1.5)
            elif key.endswith('bias'):
                p.normal_(std=0.1)
            elif key == 'head.fc.weight':
                p.normal_(std=0.1)
    source, target = tmp_path / 'timm.pth', tmp_path / 'nf.pth'
    torch.save(theirs.state_dict(), source)
    config = tmp_path / 'config.py'
    config.write_text(f"model = {timm_config(name, 10)!r}\ndefault_scope = 'mmpretrain'\n")
    tool = ROOT / 'tools/model_converters/timm_to_nf.py'
    arguments = [str(tool), str(source), str(target), '--config', str(config)]
    monkeypatch.setattr(sys, 'argv', arguments)
    with pytest.raises(SystemExit) as status:
        runpy.run_path(str(tool), run_name='__main__')
    assert status.value.code == 0, capsys.readouterr().err

    ours = build(name, 10).eval()
    ours.load_state_dict(safe_load(target)['state_dict'])
    x = torch.randn(1, 3, 97, 65)
    with torch.no_grad():
        expected = theirs(x)
        assert relative_error(logits(ours, x), expected) < 1e-4


def logits(model, x):
    return model.head.fc(model.extract_feat(x)[-1])


def test_unknown_name():
    with pytest.raises(ValueError, match='name must be one of nf_resnet26, .*, got .resnet50.'):
        timm_config('resnet50')
