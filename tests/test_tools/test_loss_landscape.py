"""The plot of the loss around trained weights."""

import json

import matplotlib.image
import pytest
import torch

from nf_plugins.config import build_model, load_config

from ..tools import run_tool

TOOL = 'analysis_tools/loss_landscape'
NF, BN = 'nf-resnet_digits.py', 'resnet-bn_digits.py'


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for config, name in ((NF, 'nf.pth'), (BN, 'bn.pth')):
        model = build_model(load_config(config), config)
        torch.save(dict(state_dict=model.state_dict(), meta={}), name)


@pytest.mark.slow
def test_it_draws_and_writes(checkpoints, tmp_path):
    few = ['--images', 8, '--points', 3, '--plane', '--radius', 0.5, '--step', 0.1]
    args = [NF, 'nf.pth', '--compare', f'{BN}=bn.pth', '--label', 'NF', 'BN', *few]
    assert run_tool(TOOL, *args, '--out-dir', 'out') == 0
    found = json.loads((tmp_path / 'out/landscape.json').read_text())['networks']
    assert [row['label'] for row in found] == ['NF', 'BN']
    for row in found:
        assert row['sides'] == [-0.5, 0, 0.5]
        assert row['line'][1] == pytest.approx(row['gradient'][0])  # both are the centre
        assert row['plane'][1][1] == pytest.approx(row['line'][1])
        assert [cells[1] for cells in row['plane']] == pytest.approx(row['line'])
    assert matplotlib.image.imread(tmp_path / 'out/landscape.png').std() > 0.05


BAD_INPUT = [
    ([NF, 'missing.pth'], 'no checkpoint at missing.pth'),
    ([NF, 'bn.pth'], 'another model'),
    (['missing.py', 'nf.pth'], 'no config at missing.py'),
    ([NF, 'nf.pth', '--compare', BN], '--compare takes CONFIG=CHECKPOINT'),
    ([NF, 'nf.pth', '--label', 'a', 'b'], '--label takes 1 names, got 2'),
    ([NF, 'nf.pth', '--radius', '0'], "'0' is not a positive number"),
    ([NF, 'nf.pth', '--points', '0'], "'0' is not a positive integer"),
    (['nf-resnet50_1xb128_cifar10.py', 'nf.pth'], 'cannot load|another model|cannot read'),
]


@pytest.mark.parametrize(('args', 'message'), BAD_INPUT)
def test_bad_input(args, message, checkpoints, capsys):
    import re

    assert run_tool(TOOL, *args) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith('error: ')
    assert re.search(message, line), line
