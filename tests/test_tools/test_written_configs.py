"""Configs that tools write and functions return: they load, train and normalise by themselves."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from mmengine.config import Config
from timm.models import get_pretrained_cfg

from nf_plugins.models.timm_models import TIMM_BACKBONES, timm_config

from ..conftest import ROOT
from .test_converters import F0W8_CONFIG, PWS_CONFIG, build, convert

# What somebody else's project has beside the model.
BASE = """
default_scope = 'SCOPE'
custom_imports = dict(imports=['json'], allow_failed_imports=False)
data_preprocessor = dict(type='mmpretrain.ClsDataPreprocessor', mean=[1.0], std=[7.0])
train_dataloader = dict(batch_size=2, dataset=dict(type='mmpretrain.FakeData'))
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
work_dir = 'elsewhere'
load_from = None
"""

# In a process that has imported nothing of ours: build, load, normalise, train one step.
STEP = """
import json, sys
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

results = {}
for path in sys.argv[2:]:
    cfg = Config.fromfile(path)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    if cfg.get('data_preprocessor'):  # as a Runner does
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(cfg.model)
    if sys.argv[1] != '-':
        model.load_state_dict(torch.load(sys.argv[1], weights_only=True)['state_dict'])
    from mmpretrain.structures import DataSample
    images = [torch.full((3, 64, 64), 200, dtype=torch.uint8) for _ in range(2)]
    images[1][0] = 10
    data = dict(inputs=images, data_samples=[DataSample().set_gt_label(i) for i in range(2)])
    inputs = model.data_preprocessor(data, True)['inputs']
    # A classifier at zero gives no gradient to what is before it.
    with torch.no_grad():
        model.head.fc.weight.normal_(std=0.01)
    before = [p.clone() for p in model.backbone.parameters()]
    from mmengine.optim import build_optim_wrapper
    wrapper = build_optim_wrapper(model, dict(optimizer=dict(type='SGD', lr=0.1)))
    losses = model.train_step(data, wrapper)
    moved = sum(not torch.equal(a, b) for a, b in zip(before, model.backbone.parameters()))
    results[path] = dict(
        images=inputs.mean((2, 3)).tolist(), loss=float(losses['loss']), moved=moved
    )
print(json.dumps(results))
"""


def step(checkpoint, *paths):
    """The results of each config alone, and of the first beside somebody else's base."""
    joined = []
    for scope in ('mmpretrain', 'mmengine'):
        with open(f'base_{scope}.py', 'w') as file:
            file.write(BASE.replace('SCOPE', scope))
        for path in paths[:1]:
            joined.append(f'joined_{scope}_{os.path.basename(path)}')
            with open(joined[-1], 'w') as file:
                file.write(f"_base_ = ['{path}', 'base_{scope}.py']\n")
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-W', 'ignore', '-c', STEP, str(checkpoint), *paths, *joined]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check(results, mean, std):
    images = np.array([[200.0] * 3, [10.0, 200.0, 200.0]])
    # mm reads BGR: the first channel is blue.
    expected = (images[:, ::-1] - mean) / std
    for path, result in results.items():
        np.testing.assert_allclose(result['images'], expected, rtol=1e-4, err_msg=path)
        assert np.isfinite(result['loss'])
        assert result['moved'] > 0


@pytest.mark.parametrize('name', list(TIMM_BACKBONES))
def test_timm_normalises_so(name):
    theirs = get_pretrained_cfg(name)
    ours = timm_config(name)['data_preprocessor']
    np.testing.assert_allclose(np.array(ours['mean']) / 255, theirs.mean, rtol=1e-6)
    np.testing.assert_allclose(np.array(ours['std']) / 255, theirs.std, rtol=1e-6)


@pytest.mark.slow
def test_timm_to_nf(tmp_path, monkeypatch, capsys):
    name = 'test_nfnet'
    monkeypatch.chdir(tmp_path)
    theirs = timm.create_model(name, num_classes=7)
    torch.save(dict(state_dict=theirs.state_dict(), epoch=1), 'timm.pth')
    assert convert('timm_to_nf', 'timm.pth', 'nf.pth', '--model', name) == 0
    assert 'nf.py' in capsys.readouterr().out
    assert set(Config.fromfile('nf.py').keys()) == {'model'}
    expected = get_pretrained_cfg(name)
    results = step('nf.pth', 'nf.py')
    assert len(results) == 3
    check(results, np.array(expected.mean) * 255, np.array(expected.std) * 255)


MEAN, STD = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])
NORMALISED = """
data_preprocessor = dict(num_classes=10, mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=True)
"""
WITH_DATA = NORMALISED + "test_dataloader = dict(batch_size=2, dataset=dict(type='FakeData'))\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ('config', 'more'),
    [
        (PWS_CONFIG, NORMALISED),
        (F0W8_CONFIG, WITH_DATA),
    ],
)
def test_fold(config, more, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'source.py').write_text(config + more)
    torch.save(dict(model=build('source.py').state_dict()), 'trained.pth')
    assert convert('fold', 'source.py', 'trained.pth', 'folded.pth') == 0
    whole = more == WITH_DATA
    alone = 'folded_model.py' if whole else 'folded.py'
    assert set(Config.fromfile(alone).keys()) == {'model'}
    assert ('test_dataloader' in Config.fromfile('folded.py')) == whole
    check(step('folded.pth', alone, *(['folded.py'] if whole else [])), MEAN, STD)
