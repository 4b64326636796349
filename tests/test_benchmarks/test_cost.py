"""The benchmark of costs, on a network small enough for a test."""

import json
import re
import sys

import pytest
import torch
from mmengine.registry import MODELS

from benchmarks.cost import benchmark


@pytest.mark.slow
@pytest.mark.parametrize(
    'config',
    [
        dict(type='NFResNet', depth=26, base_channels=4, skipinit=0.5),
        dict(type='NFResNet', depth=26, base_channels=4, attention='se', drop_path_rate=0.5),
        dict(type='NFRegNet', arch='b0'),
        dict(type='NFNet', arch=dict(base='f0', width_mult=1 / 16, group_width=4)),
        dict(type='PWSResNet', depth=18, base_channels=4, stem_channels=4, norm_cfg=None),
    ],
)
def test_no_activation_is_multiplied_by_a_number(config):
    assert benchmark.factor_passes(MODELS.build(config)) == 0


@pytest.mark.slow
def test_the_counter_counts():
    """Two of timm's 16 blocks' passes over activations each way, and our own unfolded ones."""
    assert benchmark.factor_passes(benchmark.build('timm NF')) >= 2 * 16
    net = MODELS.build(dict(type='NFResNet', depth=26, base_channels=4, skipinit=0.5))
    for module in net.modules():
        if hasattr(module, 'fold_scale'):
            module.fold_scale = False
    assert benchmark.factor_passes(net) >= 2 * 8


def test_saved_bytes_are_those_of_the_plain_net(monkeypatch):
    small = dict(depth=26, base_channels=8)
    configs = {
        'plain': dict(type='NFResNet', **small, **benchmark.PLAIN),
        'NF': dict(type='NFResNet', **small),
    }
    monkeypatch.setattr(benchmark, 'CONFIGS', configs)
    plain, ours = (benchmark.saved_bytes(name, (8, 3, 64, 64)) for name in configs)
    assert plain <= ours < 1.05 * plain


def test_quartiles_lie_among_the_measured_times():
    found = benchmark.summary({'plain': [0.001, 0.009], 'NF': [0.004]})
    assert found['plain']['ms'] == [3, 5, 7]
    assert found['NF']['ms'] == [4, 4, 4]
    assert found['NF']['ratio'] == pytest.approx(4 / 5)


@pytest.mark.slow
def test_the_tool(monkeypatch, tmp_path, capsys):
    small = dict(type='NFResNet', depth=26, base_channels=4)
    configs = {'plain': dict(small, **benchmark.PLAIN), 'NF': small, 'BN': small}
    monkeypatch.setattr(benchmark, 'CONFIGS', configs)
    out = tmp_path / 'new' / 'cost.json'
    arguments = ['--rounds', '2', '--shapes', '8x32', '--saved-batch', '2', '--networks', 'NF']
    arguments += ['--parts', 'step', 'inference', 'factors', 'parameters', '--out', str(out)]
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', *arguments])
    with pytest.raises(SystemExit) as stop:
        benchmark.main()
    assert not stop.value.code
    found = json.loads(out.read_text())
    assert found['machine']['torch'] == torch.__version__
    times = found['results']['training step']['8x3x32x32']
    assert set(times) == {'plain', 'NF'} and times['plain']['ratio'] == 1
    low, middle, high = times['NF']['ms']
    assert 0 < low <= middle <= high
    assert times['NF']['ratio'] == pytest.approx(middle / times['plain']['ms'][1], rel=1e-2)
    assert set(found['results']['inference']['8x3x32x32']) == {'plain', 'NF', 'NF deployed'}
    assert found['results']['parameters']['NF'] == sum(
        p.numel() for p in MODELS.build(small).parameters()
    )
    table = capsys.readouterr().out
    assert table.strip() == out.with_suffix('.md').read_text().strip()
    assert re.search(rf'\| 8x3x32x32 \| 1.000 \(.*\) \| {times["NF"]["ratio"]:.3f} \(', table)
    assert out.with_suffix('.png').stat().st_size > 1000


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--rounds', '0'], 'not a positive integer'),
        (['--shapes', '8'], 'not a positive integer'),
        (['--shapes', '8x0'], 'not a positive integer'),
        (['--networks', 'nope'], 'invalid choice'),
        (['--parts', 'step', 'nope'], 'invalid choice'),
    ],
)
def test_bad_arguments(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', *arguments])
    with pytest.raises(SystemExit) as stop:
        benchmark.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_gpu_where_there_is_none(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', '--device', 'cuda'])
    with pytest.raises(SystemExit) as stop:
        benchmark.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith('error: --device cuda needs a GPU')
