"""The study on the digits: a few steps of it, its tables, its workers."""

import argparse
import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import matplotlib.image
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from benchmarks.common import quiet
from benchmarks.study import arguments, figures, results, runs, tables, workers
from benchmarks.study.__main__ import main
from nf_plugins.datasets import Digits

from ..conftest import ROOT

TINY = ['--quick', '--networks', 'plain', 'nf-agc', '--workers', '0']
TIMES = ('seconds', 'cpu_seconds')


@pytest.fixture(autouse=True, scope='module')
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _fresh():
    """No config is cached: reading one sets the default scope, as in a process of its own."""
    runs.config_of.cache_clear()


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the tool in this process, and count the trainings."""
    trained = []

    def counted(which, setting, original=runs.train):
        trained.append(which)
        return original(which, setting)

    monkeypatch.setattr(runs, 'train', counted)

    def run(*args, out=tmp_path / 'out', status=0):
        trained.clear()
        monkeypatch.setattr(sys, 'argv', ['study', '--out', str(out), *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == status
        return trained

    run.out = tmp_path / 'out'
    return run


def read(folder):
    return json.loads((folder / 'results.json').read_text())


def without_times(rows):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


@pytest.mark.slow
def test_a_quick_study_and_its_resumption(run, capsys):
    assert len(run(*TINY)) == 8
    assert '8 runs to do, 0 are there' in capsys.readouterr().out
    names = ['accuracy.png', 'lr.png', 'results.json', 'spp.png', 'table.md']
    assert sorted(os.listdir(run.out)) == names
    for name in names:
        if name.endswith('png'):
            assert matplotlib.image.imread(run.out / name).std() > 0.05
    content, table = read(run.out), (run.out / 'table.md').read_text()
    assert content['schema'] == 'nf_plugins.study_digits/1'
    assert content['machine']['torch'] == torch.__version__
    assert content['setting']['min_steps'] == 2
    rows = content['runs']
    keys = [(r['network'], r['batch_size'], r['lr'], r['seed']) for r in rows]
    assert keys == [
        (n, b, lr, 0) for n in ('nf-agc', 'plain') for b in (4, 64) for lr in (0.05, 0.2)
    ]
    assert [key[:3] for key, r in zip(keys, rows) if 'spp' in r] == [
        (n, 64, 0.05) for n in ('nf-agc', 'plain')
    ]
    for row in rows:
        for when in ('start', 'end') if 'spp' in row else ():
            blocks = row['spp'][when]
            assert [b['index'] for b in blocks] == list(range(9))
            assert all(b['avg_var'] > 0 for b in blocks)
    for network in ('nf-agc', 'plain'):
        label = runs.NETWORKS[network].label
        best = max(r['accuracy'] for r in rows if (r['network'], r['batch_size']) == (network, 4))
        (line, *_) = [x for x in table.splitlines() if x.startswith(f'| {label} ')]
        assert line.split('|')[2].split()[0] == f'{best:.1f}'

    # Half of the rows are lost.
    content['runs'] = rows[::2]
    (run.out / 'results.json').write_text(json.dumps(content))
    done = run(*TINY)
    assert sorted(done) == sorted(runs.Run(*key) for key in keys[1::2])
    again = read(run.out)['runs']
    assert again[::2] == rows[::2]
    assert without_times(again) == without_times(rows)
    assert (run.out / 'table.md').read_text() == table
    assert run(*TINY) == []


@pytest.mark.slow
def test_a_study_grows(run):
    run(*TINY, '--batch-sizes', 4, '--lrs', 0.05)
    assert 'spp.png' not in os.listdir(run.out)
    assert [
        which.seed for which in run(*TINY, '--batch-sizes', 4, '--lrs', 0.05, '--seeds', 0, 1)
    ] == [1, 1]
    assert 'over 2 seeds' in (run.out / 'table.md').read_text()


@pytest.mark.slow
def test_divergence_is_counted(run):
    torch.manual_seed(0)
    absurd = ['--batch-sizes', 16, '--min-steps', 5, '--seeds', 0, 1]
    run(*TINY, *absurd, '--lrs', 1e-4, 1e6)
    rows = {tuple(r[k] for k in ('network', 'lr', 'seed')): r for r in read(run.out)['runs']}
    for seed in (0, 1):
        row = rows['plain', 1e6, seed]
        assert row['diverged'] == 'non-finite'
        assert row['train_loss'] is None
        assert row['accuracy'] == 10
    table = (run.out / 'table.md').read_text()
    chance = sum(rows['plain', 1e-4, seed]['accuracy'] <= 15 for seed in (0, 1))
    assert '| plain | none |' in table
    line = [x for x in table.splitlines() if x.startswith('| plain ')][-1]
    assert line == f'| plain | {chance} of 2 (0) | 2 of 2 (2) | {2 + chance} of 4 (2) |'


def test_equal_seeds_are_drawn():
    """Their mean is not exactly their value: an error bar of -1e-14 is refused by matplotlib."""
    args = argparse.Namespace(networks=['bn'], batch_sizes=[4], lrs=[0.2], seeds=[0, 1, 2])
    row = dict(accuracy=98.607, diverged=None)
    grid = results.Grid(dict.fromkeys(arguments.runs_of(args), row), args)
    assert grid.mean('bn', 4, 0.2) != 98.607
    figures.accuracy_figure(grid)


def test_chance_level():
    which = runs.Run('plain', 16, 1e-3, 0)
    quick = dict(epochs=0.01, min_steps=2, test_images=50)
    assert runs.train(which, runs.Setting(**quick, chance=100))['diverged'] == 'chance'
    assert runs.train(which, runs.Setting(**quick, chance=-1))['diverged'] is None


@pytest.mark.slow
def test_it_learns():
    """The whole loop: a normalised network knows most digits after 60 steps."""
    row = runs.train(runs.Run('bn', 32, 0.05, 0), runs.Setting(epochs=0.1, min_steps=60))
    assert row['steps'] == 60
    assert row['accuracy'] > 70
    assert row['train_loss'] < 1.5


def test_the_data():
    data = runs.load_data(runs.Setting(image_size=8))
    assert data.train.shape == (9, 1438, 1, 8, 8)
    assert data.test.shape == (359, 1, 8, 8)
    assert data.train[4].mean().abs() < 0.01
    assert abs(data.train[4].std() - 1) < 0.01
    digits = Digits('test')
    raw = np.stack([digits[i]['img'] for i in range(len(digits))])
    np.testing.assert_allclose(data.test[:, 0] * 95.79 + 77.79, raw, atol=1e-3)
    assert data.test_labels.tolist() == [digits[i]['gt_label'] for i in range(len(digits))]
    # Index 0 is the crop of the upper left: the picture moves down and to the right.
    assert torch.equal(data.train[0, ..., 1:, 1:], data.train[4, ..., :-1, :-1])
    assert torch.allclose(data.train[0, ..., 0, :], torch.tensor(-77.79 / 95.79))


@pytest.mark.parametrize('network', ['bn', 'gn', 'pws', 'nf', 'nf-agc', 'plain'])
def test_the_networks_are_those_of_the_configs(network):
    """The same modules at half the width, and the config's parameter groups."""
    about = runs.NETWORKS[network]
    with quiet():
        model, optimizer = runs.build(network, 0.3, 0.1)
        shipped = MODELS.build(Config.fromfile(ROOT / 'configs' / about.config).model)
    ours, theirs = (Counter(type(m) for m in net.modules()) for net in (model, shipped))
    assert ours == theirs
    for (name, p), (_, q) in zip(model.named_parameters(), shipped.named_parameters()):
        shape = tuple(2 * n for n in p.shape)
        assert all(n in (m, m // 2) for n, m in zip(p.shape, q.shape)), name
        assert q.numel() <= math.prod(shape)
    assert about.agc == (type(optimizer).__name__ == 'AGCOptimWrapper')
    decays = {
        id(p): group['weight_decay'] for group in optimizer.param_groups for p in group['params']
    }
    for name, p in model.named_parameters():
        decayed = name.endswith('weight') and p.dim() > 1
        assert decays[id(p)] == (5e-4 if decayed else 0), name
    assert {group['lr'] for group in optimizer.param_groups} == {0.3}


def test_the_schedule():
    factors = [runs.schedule(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10] == 1 == max(factors)
    assert factors[55] == pytest.approx(0.5)
    assert 0 < factors[-1] < 0.001


FILES = {
    'garbage/results.json': '{',
    'other/results.json': '{"schema": "nf_plugins.spp/1"}',
    'list/results.json': '[]',
    'a_file': '',
}
BAD_INPUT = [
    (['--networks', 'vgg'], 'invalid choice'),
    (['--batch-sizes', '0'], "invalid positive int value: '0'"),
    (['--batch-sizes', '2.5'], 'invalid positive int value'),
    (['--batch-sizes', '4', '4'], '--batch-sizes has a value twice'),
    (['--lrs', '-1'], 'invalid positive float value|expected at least one'),
    (['--lrs', 'nan'], 'invalid positive float value'),
    (['--lrs', 'inf'], 'invalid positive float value'),
    (['--seeds', '-1'], 'seeds'),
    (['--epochs', '0'], 'invalid positive float'),
    (['--workers', 'two'], 'invalid natural value'),
    (['--colour', 'red'], 'unrecognized arguments'),
    (['--out', 'a_file'], 'cannot write into a_file'),
    (['--out', 'a_file/out'], 'cannot write into a_file/out'),
    (['--out', 'garbage'], 'cannot read garbage/results.json'),
    (['--out', 'other'], 'no file of schema nf_plugins.study_digits/1'),
    (['--out', 'list'], 'no file of schema nf_plugins.study_digits/1'),
]


@pytest.mark.parametrize(('args', 'message'), BAD_INPUT)
def test_bad_input(args, message, run, tmp_path, monkeypatch, capsys):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    assert run(*TINY, *args, out='out', status=2) == []
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith('error: ')
    assert re.search(message, line), line


def test_another_setting_is_refused(run, capsys):
    few = ['--batch-sizes', 4, '--lrs', 0.05]
    run(*TINY, *few)
    before = (run.out / 'results.json').read_bytes()
    capsys.readouterr()
    assert run(*TINY, *few, '--epochs', 3, '--clip-factor', 0.5, status=2) == []
    error = capsys.readouterr().err
    assert 'another setting: epochs 0.01 (now 3.0), clip_factor 0.1 (now 0.5); take' in error
    assert (run.out / 'results.json').read_bytes() == before


def test_the_page_has_the_results():
    """docs/study_digits.md says what benchmarks/results has."""
    folder = ROOT / 'benchmarks/results/study_digits'
    page = (ROOT / 'docs/study_digits.md').read_text()
    content = read(folder)
    assert content['setting'] == json.loads(json.dumps(dataclasses.asdict(runs.Setting())))
    rows = {runs.Run(*(row[k] for k in runs.Run._fields)): row for row in content['runs']}
    sizes = [4, 16, 64, 256, 512]  # one more than the tool takes by itself
    args = argparse.Namespace(
        networks=list(runs.NETWORKS), **{**arguments.FULL, 'batch_sizes': sizes}
    )
    assert sorted(rows) == sorted(arguments.runs_of(args))
    seconds = dict.fromkeys(sizes, 0.0)
    for run, row in rows.items():
        seconds[run.batch_size] += row['cpu_seconds']
    total, without = sum(seconds.values()), sum(seconds.values()) - seconds[256]
    assert f'The 450 runs took {total:.0f} CPU seconds' in page
    assert f'batch size 256 took {without:.0f} CPU seconds, or {without / 120:.0f} minutes' in page
    assert set(arguments.FULL['batch_sizes']) == {*sizes} - {256} and without / 120 < 20
    table = tables.table(results.Grid(rows, args), runs.Setting())
    assert (folder / 'table.md').read_text() == table
    lines = {line.lstrip('#') for line in page.splitlines()}
    for line in table.splitlines():
        assert line.lstrip('#') in lines
    for name in ('accuracy', 'lr', 'spp'):
        assert (folder / f'{name}.png').exists()
        assert f'(../benchmarks/results/study_digits/{name}.png)' in page


def test_two_studies_at_once(run, capsys):
    run.out.mkdir()
    with results.only_one(run.out):
        assert run(*TINY, status=2) == []
    assert 'another study is writing into' in capsys.readouterr().err


def test_a_failing_worker(run, monkeypatch, capsys):
    monkeypatch.setattr(workers, 'COMMAND', [sys.executable, os.devnull])  # an empty program
    assert run(*TINY, '--workers', 1, status=2) == []
    assert 'a worker ended early' in capsys.readouterr().err
    assert read(run.out)['runs'] == []


@pytest.mark.parametrize('workers', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_that_is_impossible(workers, run, capsys):
    """Batch norm of a single position."""
    run(
        *('--quick', '--networks', 'bn', '--batch-sizes', 1, '--image-size', 4),
        *('--workers', workers),
        status=2,
    )
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'error: cannot train bn, batch size 1, 4 pixels: Expected more than 1 value' in error


@pytest.mark.slow
def test_killed_and_resumed(run, tool_env):
    """Worker processes; kill -9 keeps what is finished, and the workers end by themselves."""
    args = [*TINY[:-2], '--batch-sizes', '64']
    command = [
        sys.executable,
        '-W',
        'ignore',
        '-m',
        'benchmarks.study',
        *args,
        '--out',
        str(run.out),
    ]
    process = subprocess.Popen(
        command, env=tool_env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    end = time.time() + 300
    while time.time() < end:
        if (run.out / 'results.json').exists() and len(read(run.out)['runs']) >= 2:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=300)  # until the workers, too, have closed stderr
    kept = read(run.out)['runs']
    assert 2 <= len(kept) <= 4
    done = run(*args, '--workers', 0)
    assert len(done) == 4 - len(kept)
    rows = read(run.out)['runs']
    assert [row for row in rows if row in kept] == kept
    run(*args, '--workers', 0, out=run.out.parent / 'whole')
    assert without_times(read(run.out.parent / 'whole')['runs']) == without_times(rows)
