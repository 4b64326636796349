"""The study on Fashion-MNIST: its data, its networks, a tiny grid that is killed, its page."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.common import quiet
from benchmarks.study import (
    claims,
    data,
    figures,
    fitting,
    landscape,
    multiplicity,
    page,
    results,
    runs,
    training,
    transfer,
    workers,
)
from benchmarks.study.__main__ import main
from benchmarks.study.film import Film
from benchmarks.study.runs import NETWORKS, PARTS, Part, Run
from nf_plugins.errors import UsageError
from nf_plugins.functional import adaptive_clip_grad_

from ..conftest import ROOT
from ..tools import Apart

TINY = [
    Run('depth', 'nf', 1, 4, 0.1, 2),
    Run('depth', 'plain', 1, 4, 1e4, 4),
    Run('agc', 'nf-agc', 1, 4, 0.1, 2, clip_factor=0.1),
    Run('batch', 'bn', 1, 2, 0.1, 2),
    Run('collapse', 'pws', 1, 4, 0.1, 2),
    Run('landscape', 'bn', 1, 4, 0.1, 2),
    Run('transfer', 'nf', 1, 4, 0.1, 2),
]
TIMES = ('seconds', 'cpu_seconds')
FOR_VALIDATION = 10


@pytest.fixture(autouse=True, scope='module')
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_idx(path, values):
    sizes = b''.join(n.to_bytes(4, 'big') for n in values.shape)
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes())


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A folder with 60 training and 20 test images of noise, brighter for larger labels."""
    folder, random = tmp_path / 'fashion_mnist', np.random.RandomState(0)
    folder.mkdir()
    for split, number in (('train', 60), ('t10k', 20)):
        labels = np.arange(number, dtype=np.uint8) % 10
        noise = random.randint(0, 30, (number, 28, 28)) + 20 * labels[:, None, None]
        write_idx(folder / f'{split}-images-idx3-ubyte', noise.astype(np.uint8))
        write_idx(folder / f'{split}-labels-idx1-ubyte', labels)
    monkeypatch.setattr(data, 'DATA', folder)
    monkeypatch.setattr(data, 'VALIDATION', FOR_VALIDATION)
    data.load_data.cache_clear()
    fitting.config_of.cache_clear()  # reading a config sets the default scope
    yield folder
    data.load_data.cache_clear()


GRIDS = {
    part: Part('', lambda more, part=part: (run for run in TINY if run.part == part))
    for part in dict.fromkeys(run.part for run in TINY)
}
SHORT = ('depth', 'agc', 'batch', 'collapse')


def arguments(out):
    """The command line of the study of the short parts of the tiny grid, in one process."""
    return ['study', '--workers', '0', '--seeds', '0', '--out', str(out), '--parts', *SHORT]


@pytest.fixture
def study(images, monkeypatch, tmp_path):
    """Run the tool in this process on the tiny grid."""
    for part, grid in GRIDS.items():
        monkeypatch.setitem(PARTS, part, grid)
    for module, few in (
        (landscape, dict(IMAGES=8, DIRECTIONS=2, POINTS=3, PLANE_POINTS=3)),
        (transfer, dict(STEPS=1, DIGITS=(10, 20))),
    ):
        for name, value in few.items():
            monkeypatch.setattr(module, name, value)

    def study(*args, out='out', status=0):
        monkeypatch.setattr(sys, 'argv', [*arguments(tmp_path / out), *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == status
        path = tmp_path / out / 'results.json'
        return json.loads(path.read_text())['runs'] if path.exists() else []

    return study


def die_in_a_training(folder, out, steps):
    """Run the study in a process of its own, which kills itself after some steps."""
    data.DATA, data.VALIDATION = Path(folder), FOR_VALIDATION
    PARTS.update(GRIDS)
    left = [int(steps)]

    def forward(self, loss, original=fitting.F.cross_entropy):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, loss)

    fitting.F.cross_entropy = forward
    torch.set_num_threads(1)
    sys.argv = arguments(out)
    main()


def without_times(rows):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


@pytest.mark.slow
def test_killed_twice_and_resumed(study, images, monkeypatch, tmp_path):
    """kill -9 in the middle of a training keeps what is finished; the end is the same."""
    whole = study(out='whole')
    runs = sum(run.part in SHORT for run in TINY)
    assert len(whole) == runs
    code = f'import sys; from {__name__} import die_in_a_training; die_in_a_training(*sys.argv[1:])'
    for steps, rows in ((3, 1), (4, 2)):
        child = Apart(code, images, tmp_path / 'out', steps, code=True)
        assert child.wait() == -signal.SIGKILL, child.output[-2000:]
        kept = json.loads((tmp_path / 'out' / 'results.json').read_text())['runs']
        assert len(kept) >= rows
    assert len(kept) < runs
    trained = []
    monkeypatch.setattr(
        workers, 'attempt', lambda run: trained.append(run) or training.attempt(run)
    )
    assert without_times(study()) == without_times(whole)
    assert len(trained) == runs - len(kept)
    assert study() and len(trained) == runs - len(kept)


@pytest.mark.slow
def test_rows_and_page(study, tmp_path, monkeypatch, capsys):
    rows = {row['part'] + row['network']: row for row in study('--parts', *GRIDS)}
    assert rows['depthplain']['failed'] == 'non-finite'
    assert rows['depthplain']['accuracy'] == 10
    assert rows['depthnf']['prediction']['errors'] == []
    assert rows['agcnf-agc']['clipped']['stem weight'][1] == 2 * 8
    assert rows['batchbn']['batch_accuracy'] is not None
    assert [len(f['grad_avg_var']) for f in rows['collapsepws']['film']] == [5, 5]
    valley = rows['landscapebn']['valley']
    assert len(valley['lines']) == len(valley['running']) == 2
    assert valley['plane'][1][1] == valley['lines'][0][1] != valley['running'][0][1]
    assert [d['images'] for d in rows['transfernf']['transfer']] == [10, 20]
    words = ['page', '--results', tmp_path / 'out', '--page', tmp_path / 'study.md']
    monkeypatch.setattr(sys, 'argv', [*map(str, words)])
    with pytest.raises(SystemExit) as stop:
        page.main()
    assert stop.value.code == 0
    text = (tmp_path / 'study.md').read_text()
    assert '7 runs with one seed' in text
    assert '| plain | fails |' in text.replace('|  |', '|')
    assert '## Adaptive gradient clipping' in text and '## What each part' not in text
    for name in figures.FIGURES:
        assert matplotlib.image.imread(tmp_path / 'out' / f'{name}.png').std() > 0.05


def test_the_page_has_the_results():
    """docs/study.md is what the script writes from benchmarks/results."""
    found = results.Results(ROOT / 'benchmarks/results/study/results.json')
    assert (ROOT / 'docs/study.md').read_text() == page.page(found)
    assert set(found.rows()) <= set(runs.runs_of(list(PARTS), [0, 1, 2], more=True)) | set(
        runs.runs_of(list(PARTS), [0, 1, 2], more=False)
    )


def test_the_data(images):
    found = data.load_data()
    assert [len(part.labels) for part in found] == [50, 10, 20]
    assert found.test.images.shape == (20, 1, 16, 16)
    raw = np.frombuffer((images / 't10k-images-idx3-ubyte').read_bytes()[16:], np.uint8)
    padded = np.pad(raw.reshape(20, 28, 28).astype(float), ((0, 0), (2, 2), (2, 2)))
    small = padded.reshape(20, 16, 2, 16, 2).mean((2, 4))
    ours = found.test.images[:, 0].double().numpy()
    np.testing.assert_allclose(np.corrcoef(ours.ravel(), small.ravel())[0, 1], 1, atol=1e-6)
    training_images = torch.cat([found.train.images, found.val.images])
    assert abs(training_images.mean()) < 1e-4
    assert abs(training_images.std() - 1) < 1e-4


def test_the_digits():
    for part, number in zip(data.load_digits(), (1438, 359)):
        assert part.images.shape == (number, 1, 16, 16)
        assert part.labels.bincount().min() > number / 12
    assert abs(data.load_digits()[0].images.mean()) < 1e-4


def test_missing_and_damaged_data(images):
    (images / 't10k-images-idx3-ubyte').write_bytes(b'\0\0\10\3')
    with pytest.raises(UsageError, match='cannot read the t10k images'):
        data.load_data()
    (images / 'train-images-idx3-ubyte').unlink()
    with pytest.raises(UsageError, match='no Fashion-MNIST in .*make fashion-mnist'):
        data.load_data()


def test_batches_are_passes_over_the_images():
    torch.manual_seed(0)
    found = torch.cat(data.batches(10, 4, 5))
    assert len(found) == 20
    assert sorted(found[:10].tolist()) == sorted(found[10:].tolist()) == list(range(10))


@pytest.mark.parametrize('network', NETWORKS)
def test_the_networks(network):
    """The convolutions that are counted, the clipping, and no weight decay of gains and biases."""
    fitting.config_of.cache_clear()
    clip = 0.1 if network == 'nf-agc' else None
    run = Run('', network, 1, lr=0.3, clip_factor=clip)
    with quiet():
        model, optimizer = fitting.build(run)
    assert (type(optimizer).__name__ == 'AGCOptimWrapper') == (clip is not None)
    assert {group['lr'] for group in optimizer.param_groups} == {0.3}
    with torch.no_grad():
        assert model(torch.randn(2, 1, 16, 16)).shape == (2, 10)
    features = model.backbone(torch.randn(2, 1, 16, 16))[0]
    if network.startswith('vit'):
        assert features.shape == (2, 64)
        return
    assert features.shape == (2, 256, 2, 2)
    convs = [m for m in model.modules() if 'Conv' in type(m).__name__ or 'WS' in type(m).__name__]
    assert len({id(m.weight) for m in convs if hasattr(m, 'weight')}) == run.convs


@pytest.mark.parametrize(
    ('network', 'norm'), [('ln', 'LayerNorm'), ('dyt', 'DyT'), ('derf', 'Derf'), ('none', None)]
)
def test_the_transformers(network, norm):
    """Two norms of each layer, one after the last layer, and one after the pooling."""
    with quiet():
        model, _ = fitting.build(Run('', f'vit-{network}', 3, lr=0.3))
    kinds = Counter(type(m).__name__ for m in model.modules())
    norms = {name: kinds[name] for name in ('LayerNorm', 'DyT', 'Derf') if kinds[name]}
    assert norms == ({norm: 2 * 3 + 2} if norm else {})
    assert kinds['MultiheadAttention'] == 3


def test_several_augmentations_of_an_image(images):
    """Of a batch of 8, each image comes four times, and its copies differ."""
    run = Run('multiplicity', 'nf-agc', 1, 8, 0.1, 5, clip_factor=0.1, multiplicity=4)
    order = multiplicity.order_of(run, 20)
    assert [len(chosen) for chosen in order] == [8] * 5
    assert all(len(set(chosen.tolist())) == 2 for chosen in order)
    assert len(set(torch.cat(order)[::4].tolist())) == 10  # no image comes back in the first epoch
    x = torch.rand(1, 1, 6, 6).repeat(40, 1, 1, 1)
    changed = multiplicity.augment(x)
    assert changed.shape == x.shape
    assert len({tuple(image.flatten().tolist()) for image in changed}) > 5
    inner = {round(float(v), 6) for v in x[0].flatten()}
    assert {round(float(v), 6) for v in changed.flatten()} <= inner  # moved, not computed


def test_the_schedule():
    factors = [fitting.schedule(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10] == 1 == max(factors)
    assert factors[55] == pytest.approx(0.5)
    assert 0 < factors[-1] < 0.001


def test_clipped_units_are_those_that_agc_clips():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.LazyLinear(4))
    model(torch.randn(2, 1, 5, 5)).square().sum().backward()
    counts = {}
    fitting.count_clipped(model, 2.0, counts)
    clipped, units = map(sum, zip(*counts.values()))
    share = adaptive_clip_grad_(model.parameters(), 2.0, 1e-3)
    assert 0 < share < 1
    assert clipped / units == pytest.approx(float(share))


@pytest.mark.slow
@pytest.mark.parametrize(('network', 'fails'), [('nf', False), ('bn', False), ('plain', True)])
def test_prediction(network, fails, images):
    """Before a step is taken, the rules tell a network that explodes from others."""
    torch.manual_seed(0)
    with quiet():
        model, _ = fitting.build(Run('depth', network, 6))
    found = training.prediction(model, data.load_data())
    assert bool(found['errors']) == fails, found
    assert (found['growth'] > figures.LIMIT) == fails


@pytest.mark.parametrize('norm', [nn.Identity, nn.BatchNorm1d])
def test_the_loss_along_the_gradient(norm):
    """Against a step of SGD with the learning rate that predicts the decrease."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 8), norm(8), nn.ReLU(), nn.Linear(8, 3))
    images = data.Images(torch.randn(16, 1, 3, 3), torch.arange(16) % 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = landscape.descent(model, images)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key

    loss = nn.functional.cross_entropy(model(images.images), images.labels)
    loss.backward()
    loss = loss.item()
    squared = sum(float(p.grad.square().sum()) for p in model.parameters())
    assert found['squared_gradient'] == pytest.approx(squared, rel=1e-3)
    torch.optim.SGD(model.parameters(), lr=0.1 * loss / squared).step()
    after = nn.functional.cross_entropy(model(images.images), images.labels)
    assert found['losses'][0] == found['loss'] == pytest.approx(loss, rel=1e-3)
    (share,) = landscape.predicted_shares(dict(descent=[dict(step=0, **found)])).values()
    assert share == pytest.approx((loss - after.item()) / loss / 0.1, abs=0.02)


def test_the_width_of_a_valley():
    xs = landscape.sides(201)
    parabola = [3.0 + (2 * x if x > 0 else x) ** 2 for x in xs]  # the right side is half as wide
    assert landscape.width(parabola) == pytest.approx(1.5 * 0.5**0.5, abs=1e-3)
    assert landscape.width([3.0] * 201) == 2  # no end
    assert landscape.width([None, 3.0, None]) < 1e-6


def test_the_digits_start_from_the_weights(monkeypatch):
    """Each training has the same images; one of two the weights of the backbone, and no other."""
    fitting.config_of.cache_clear()
    torch.manual_seed(5)
    run, starts = Run('transfer', 'nf', 1), []
    with quiet():
        model, _ = fitting.build(run)

    def fit(run, net, optimizer, images):
        starts.append(({k: v.clone() for k, v in net.state_dict().items()}, images.labels))

    monkeypatch.setattr(transfer, 'fit', fit)
    monkeypatch.setattr(transfer, 'DIGITS', (10,))
    (row,) = transfer.transfer(run, model)
    (scratch, labels), (weights, same_labels) = starts
    assert torch.equal(labels, same_labels) and len(labels) == 10
    trained = {k: v for k, v in model.state_dict().items() if k.startswith('backbone.')}
    assert all(torch.equal(weights[key], value) for key, value in trained.items())
    assert not any(torch.equal(scratch[k], v) for k, v in trained.items() if v.dim() == 4)
    assert not torch.equal(weights['head.fc.weight'], model.head.fc.weight)
    assert row['scratch'] != row['weights']


def moment(step, share, variance, loss):
    curves = dict(grad_avg_sq_mean=[share, share], grad_avg_var=[variance, variance])
    return dict(step=step, loss=loss, **curves)


def test_the_film_shows_all_networks():
    frames = {
        'nf': [moment(0, 0.1, 0.9, 2.3), moment(1, 0.2, 0.6, 2.0), moment(2, 0.3, 0.7, 1.5)],
        'plain': [moment(0, 0.1, 0.9, 2.3), moment(1, None, None, None)],
    }
    drawn = Film(results.Rows([row('collapse', n, film=f) for n, f in frames.items()]))
    drawn.show(1)
    (share, variance, loss), (ended, *_) = drawn.lines
    assert list(share.get_ydata()) == pytest.approx([0.25, 0.25])
    assert list(variance.get_ydata()) == [0.6, 0.6]
    assert list(loss.get_ydata()) == [2.3, 2.0]
    assert list(ended.get_ydata()) == pytest.approx([0.1, 0.1])  # its last finite frame
    drawn.show(2)
    texts = [text.get_text() for text in drawn.legend.get_texts()]
    assert texts == ['NF', 'plain: not finite at step 1']


def row(part, network, accuracy=60.0, **more):
    base = dict(vars(Run(part, network)), accuracy=accuracy, val_accuracy=accuracy)
    return {**base, 'failed': 'chance' if accuracy <= 15 else None, **more}


def predicted(network, accuracy, errors=(), **more):
    return row('depth', network, accuracy, prediction=dict(errors=list(errors)), **more)


def around(network, width, after, **more):
    """A row with a valley of a width, and the loss after a predicted decrease of a tenth."""
    line = [abs(x) * 2 * landscape.RISE / width for x in landscape.sides(21)]
    losses = [1.0, 0.95, after, *[0.8] * 5]
    return row('landscape', network, valley=dict(lines=[line]), **more,
               descent=[dict(step=0, losses=losses)])  # fmt: skip


def landscapes(plain_width, plain_after):
    return [
        around(n, width + seed / 100, after, seed=seed)
        for n, width, after in [('nf', 0.9, 0.91), ('pws', 0.8, 0.92), ('bn', 0.9, 0.91),
                                ('plain', plain_width, plain_after)]
        for seed in range(2)
    ]  # fmt: skip


def digits(scratch, weights):
    return [
        row('transfer', 'nf', transfer=[dict(images=9, scratch=scratch + x, weights=weights + x)])
        for x in (0, 1)
    ]


def film(share):
    return [dict(step=0, grad_avg_sq_mean=[share], grad_avg_var=[1 - share])]


JUDGED = [
    ('NF networks train', [predicted(n, a) for n in ('nf', 'nf-agc') for a in (50, 60)], True),
    ('NF networks train', [predicted('nf', 50), predicted('nf-agc', 11)], False),
    ('NF networks train', [predicted('nf', 50)], None),
    ('A deep network', [predicted('plain', 50), predicted('plain', 10, blocks=33)], True),
    ('A deep network', [predicted('plain', 10), predicted('plain', 30, blocks=33)], False),
    ('The signal', [predicted('plain', 10, ['explosion']), predicted('nf', 50)], True),
    ('The signal', [predicted('plain', 10, ['explosion']), predicted('nf', 10)], False),
    ('The signal', [predicted('plain', 50, ['explosion']), predicted('nf', 50)], False),
    *(
        ('AGC allows', [row('agc', 'nf', lr=x), row('agc', 'nf-agc', lr=0.8, clip_factor=0.1)], yes)
        for x, yes in ((0.2, True), (0.8, False))
    ),
    (
        'NF networks are better',
        [row('batch', n, a, batch_size=s)
         for n, a, s in [('nf-agc', 60, 2), ('bn', 40, 2), ('nf-agc', 60, 64), ('bn', 60, 64)]],
        True,
    ),
    ('The reason', [row('batch', 'bn', 40, batch_size=2, batch_accuracy=42)], False),
    (
        'The average gradient',
        [row('collapse', 'plain', 10, film=film(0.9)),
         *(row('collapse', n, film=film(0.1)) for n in ('pws', 'ws'))],
        True,
    ),
    ('Scaled WS, PWS', landscapes(0.5, 0.95), True),
    ('Scaled WS, PWS', landscapes(0.8, 0.95), False),
    ('They make', landscapes(0.5, 0.95), True),
    ('They make', landscapes(0.5, 0.915), False),
    ('They make', landscapes(0.5, 0.95)[:4], None),
    ('NF networks can', digits(50, 60), True),
    ('NF networks can', digits(50, 51), False),
    ('NF networks can', digits(50, 60)[:1], None),
    ('Scaled WS con', [row('ablation', n, a) for n, a in
                   [('nf', 60), ('nf', 61), ('nf-no-ws', 50), ('nf-no-ws', 51)]], True),
    ('Scaled WS con', [row('ablation', n, a) for n, a in
                   [('nf', 60), ('nf', 50), ('nf-no-ws', 50), ('nf-no-ws', 55)]], False),
]  # fmt: skip


@pytest.mark.parametrize(('start', 'rows', 'expected'), JUDGED)
def test_claims_can_be_refuted(start, rows, expected):
    table = claims.claims_table(results.Rows(rows))
    (line,) = [x for x in table.splitlines() if x.startswith(f'| {start}')]
    assert line.endswith({True: '| yes |', False: '| **no** |', None: '| open |'}[expected]), line


def test_results_of_another_processor(tmp_path):
    """The page has its verdicts, and how much the accuracies of the same runs differ."""

    def write(name, cpu, accuracies):
        networks = ('nf', 'nf', 'nf-no-ws', 'nf-no-ws')
        rows = [
            row('ablation', network, accuracy, seed=seed % 2, cpu_seconds=1.0)
            for seed, (network, accuracy) in enumerate(zip(networks, accuracies))
        ]
        content = dict(schema=results.SCHEMA, runs=rows, machine=dict(cpu=cpu, torch='2'))
        (tmp_path / name).write_text(json.dumps(content))

    write('results.json', 'Here', [60.0, 61.0, 50.0, 51.0])
    alone = page.page(results.Results(tmp_path / 'results.json'))
    assert 'on There' not in alone and 'Processors add' not in alone
    write('results_there.json', 'There', [60.0, 62.0, 53.0, 14.0])
    text = page.page(results.Results(tmp_path / 'results.json'))
    assert (
        'on There ([results_there.json](../benchmarks/results/study/results_there.json)), the '
        'accuracies of the same 4 runs differ by 2.0 points (median) and by 37.0 at most, and 1 '
        'runs fail on one of the two processors only'
    ) in text
    assert text.splitlines().count('| --- | --- | --- | :---: | :---: |') == 1
    (line,) = [x for x in text.splitlines() if x.startswith('| Scaled WS con')]
    assert line.endswith('| yes, so far | **no** |')


def test_the_default_study():
    found = runs.runs_of(list(PARTS), [0, 1, 2], more=False)
    assert len(found) == len(set(found))
    more = runs.runs_of(list(PARTS), [0, 1, 2], more=True)
    assert {run.part for run in found} == set(PARTS) == {run.part for run in more}
    assert {run.convs for run in found if run.part == 'depth'} == {29, 101, 401}
    assert [run.seed for run in found] == sorted(run.seed for run in found)


FILES = {'garbage/results.json': '{', 'other/results.json': '{"schema": "x"}', 'a_file': ''}
BAD_INPUT = [
    (['--parts', 'width'], 'invalid choice'),
    (['--seeds', '-1'], "'-1' is not a natural number|expected at least one"),
    (['--seeds', '1', '1'], '--seeds has a value twice'),
    (['--workers', 'two'], "'two' is not a natural number"),
    (['--out', 'a_file/out'], 'cannot write into a_file/out'),
    (['--out', 'garbage'], 'cannot read garbage/results.json'),
    (['--out', 'other'], 'no file of schema nf_plugins.study/1'),
]


@pytest.mark.parametrize(('args', 'message'), BAD_INPUT)
def test_bad_input(args, message, study, tmp_path, monkeypatch, capsys):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    study(*args, status=2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith('error: ')
    assert re.search(message, line), line


def test_two_studies_at_once(study, tmp_path, capsys):
    (tmp_path / 'out').mkdir()
    with results.only_one(tmp_path / 'out'):
        study(status=2)
    assert 'another study is writing into' in capsys.readouterr().err


def test_a_failing_worker(study, monkeypatch, capsys):
    monkeypatch.setattr(workers, 'COMMAND', [sys.executable, os.devnull])  # an empty program
    study('--workers', 1, status=2)
    assert 'a worker ended early' in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_is_impossible(study, monkeypatch, capsys):
    impossible = replace(TINY[3], batch_size=0)
    monkeypatch.setitem(PARTS, 'batch', Part('', lambda more: iter([impossible])))
    study(status=2)
    assert 'error: cannot train Run(' in capsys.readouterr().err.strip().splitlines()[-1]


def make(folder, *args):
    return subprocess.run(
        ['make', '-s', '-f', ROOT / 'Makefile', 'fashion-mnist', *args],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_the_package_is_unpacked(tmp_path):
    import gzip

    package = tmp_path / 'package'
    package.mkdir()
    names = [f'{s}-{k}-ubyte' for s in ('train', 't10k') for k in ('images-idx3', 'labels-idx1')]
    for name in names:
        (package / f'{name}.gz').write_bytes(gzip.compress(name.encode()))
    assert make(tmp_path, f'FASHION_MNIST={package}').returncode == 0
    folder = tmp_path / 'data/fashion_mnist'
    assert {p.name: p.read_text() for p in folder.iterdir()} == {n: n for n in names}
    # A damaged file does not replace one that is whole.
    (package / f'{names[0]}.gz').write_bytes(b'damaged')
    assert make(tmp_path, f'FASHION_MNIST={package}').returncode != 0
    assert (folder / names[0]).read_text() == names[0]


def test_the_package_is_missing(tmp_path):
    done = make(tmp_path, f'FASHION_MNIST={tmp_path / "missing"}')
    assert done.returncode != 0
    line = next(x for x in done.stderr.splitlines() if x.startswith('error'))
    assert 'install the Debian package dataset-fashion-mnist' in line
    assert not (tmp_path / 'data').exists()


def test_a_page_without_results(tmp_path, monkeypatch, capsys):
    target = tmp_path / 'study.md'
    monkeypatch.setattr(sys, 'argv', ['page', '--results', str(tmp_path), '--page', str(target)])
    with pytest.raises(SystemExit, match='2'):
        page.main()
    said = capsys.readouterr().err.strip().splitlines()
    assert said == [f'error: no results in {tmp_path}: `make study` makes them']
    assert not target.exists()
