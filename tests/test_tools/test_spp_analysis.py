import csv
import json
import re
import runpy
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from nf_plugins.spp import RULES, analyze
from nf_plugins.spp.inputs import gaussian_batch, seeded

from ..conftest import ROOT
from ..tools import run_tool

NF = str(ROOT / 'configs/nf_resnet/nf-resnet_digits.py')
BN = str(ROOT / 'configs/baselines/resnet-bn_digits.py')


def run(*args, status=0):
    assert run_tool('spp_analysis', *args) == status


def build():
    cfg = Config.fromfile(NF)
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model)


@pytest.mark.slow
def test_a_checkpoint_is_what_is_measured(tmp_path, capsys):
    model = build()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith('gain'):
                p.uniform_(0.5, 2)
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'epoch_3.pth')
    out = tmp_path / 'with spaces' / 'ünicode'
    formats = ['--format', 'png', 'svg', 'pdf', 'json', 'csv']
    run(NF, tmp_path / 'epoch_3.pth', '--out-dir', out, '--seed', 5, *formats)

    record = json.loads((out / 'spp.json').read_text())
    expected = analyze(model.backbone, gaussian_batch((8, 1, 16, 16), 5), mode='train', seed=5)
    assert record['schema'] == 'nf_plugins.spp/2'
    assert record['blocks'] == json.loads(json.dumps(expected.to_dict()))['blocks']
    assert (record['mode'], record['seed']) == ('train', 5)
    assert record['input'] == {'kind': 'gaussian', 'shape': [8, 1, 16, 16]}
    assert record['config'] == NF
    assert record['checkpoint'].endswith('epoch_3.pth')
    assert record['versions']['torch'] == torch.__version__
    assert set(record['blocks'][0]) >= {
        'index', 'name', 'kind', 'shape', 'avg_sq_mean', 'avg_var', 'res_avg_var', 'expected_var',
    }  # fmt: skip
    rows = list(csv.DictReader((out / 'spp.csv').read_text().splitlines()))
    assert [float(r['avg_var']) for r in rows] == [b['avg_var'] for b in record['blocks']]
    with Image.open(out / 'spp.png') as image:
        assert image.width > 1000
    assert '<svg' in (out / 'spp.svg').read_text()
    assert sorted(p.name for p in out.iterdir()) == [
        'spp.csv',
        'spp.json',
        'spp.pdf',
        'spp.png',
        'spp.svg',
    ]
    printed = capsys.readouterr().out
    for block in expected.blocks:
        assert block.name in printed
        assert f'{block.avg_var:.4g}' in printed


@pytest.mark.slow
def test_compare_mode_size_and_data(tmp_path):
    run(
        *[NF, '--compare', BN, '--label', 'ours', 'batch norm', '--out-dir', tmp_path],
        *['--mode', 'eval', '--input', 'test', '--batch-size', 3],
        *['--cfg-options', 'model.backbone.skipinit=1.0'],
    )
    record = json.loads((tmp_path / 'spp.json').read_text())
    (other,) = record['compared']
    for part in (record, other):
        assert part['mode'] == 'eval'
        assert part['input'] == {'kind': 'test', 'shape': [3, 1, 16, 16]}
    assert other['config'] == BN
    assert record['blocks'][2]['avg_var'] != record['blocks'][1]['avg_var']  # the option acted

    run(NF, '--input-size', 24, 40, '--batch-size', 2, '--out-dir', tmp_path)
    record = json.loads((tmp_path / 'spp.json').read_text())
    assert record['input']['shape'] == [2, 1, 24, 40]
    assert 'compared' not in record


@pytest.mark.slow
def test_what_is_wrong_in_words_and_as_a_status(tmp_path, capsys):
    arguments = [NF, '--out-dir', str(tmp_path), '--fail-on']
    for rules, code in ((['explosion', 'zero_branch'], 1), (['explosion'], 0)):
        run(*arguments, *rules, status=code)
        assert 'zero_branch: 8 of 8 branches add nothing' in capsys.readouterr().out
    (verdict,) = json.loads((tmp_path / 'spp.json').read_text())['verdicts']
    keys = {'rule', 'severity', 'block', 'name', 'message', 'cause', 'remedy'}
    assert set(verdict) == keys
    run(NF, '--out-dir', tmp_path, '--unit-gain', '--fail-on', 'zero_branch')
    assert json.loads((tmp_path / 'spp.json').read_text())['unit_gain'] is True


@pytest.mark.slow
def test_gradients_and_the_page(tmp_path):
    formats = ['--format', 'png', 'html', 'csv']
    run(NF, '--out-dir', tmp_path, '--backward', '--compare', BN, *formats)
    record = json.loads((tmp_path / 'spp.json').read_text())
    net = build().backbone
    net.init_weights()
    for part in (record, *record['compared']):
        assert all(b['grad_avg_var'] > 0 for b in part['blocks'])
    with Image.open(tmp_path / 'spp.png') as image:  # two rows of panels
        assert image.height > 0.55 * image.width
    page = (tmp_path / 'spp.html').read_text()
    for word in ('Plotly', 'Gradient: channel variance', 'layer4.1', 'nf-resnet_digits'):
        assert word in page
    assert not re.search(r'<script[^>]+src=', page)  # nothing is fetched


@pytest.mark.parametrize('one', [True, False])
def test_images(tmp_path, one):
    """Grey, coloured and 16-bit files of several sizes, as the test pipeline makes them."""
    folder = tmp_path / 'images of a stränger'
    (folder / 'deeper').mkdir(parents=True)
    rng = np.random.default_rng(0)
    cv2.imwrite(str(folder / 'a.png'), rng.integers(0, 255, (20, 30), np.uint8))
    cv2.imwrite(str(folder / 'b.JPG'), rng.integers(0, 255, (16, 16, 3), np.uint8))
    cv2.imwrite(str(folder / 'deeper/c.png'), rng.integers(0, 65535, (40, 8), np.uint16))
    (folder / 'notes.txt').write_text('no image')
    source = folder / 'a.png' if one else folder
    run(NF, '--out-dir', tmp_path, '--input', source, '--seed', 0)
    record = json.loads((tmp_path / 'spp.json').read_text())
    assert record['input'] == {
        'kind': 'images', 'path': str(source), 'shape': [1 if one else 3, 1, 16, 16],
    }  # fmt: skip
    if one:
        grey = cv2.imread(str(source), cv2.IMREAD_GRAYSCALE)
        grey = cv2.resize(grey, (16, 16), interpolation=cv2.INTER_CUBIC)
        batch = torch.tensor((grey - 77.79) / 95.79, dtype=torch.float32)[None, None]
        with seeded(0):
            torch.manual_seed(0)
            net = build().backbone
            net.init_weights()
        expected = analyze(net, batch, mode='train', seed=0)
        found = [b['avg_var'] for b in record['blocks']]
        assert found == pytest.approx([b.avg_var for b in expected.blocks], rel=1e-4)


def quantized(weight):
    return torch.quantize_per_tensor(weight.detach(), 0.1, 0, torch.qint8)


WEIGHTS = {
    'meta': lambda weight: weight.detach().to('meta'),
    'sparse': lambda weight: weight.detach().to_sparse(),
    'csr': lambda weight: weight.detach().flatten(1).to_sparse_csr(),
    'quantized': quantized,
    'complex': lambda weight: weight.detach().to(torch.complex64),
}


@pytest.mark.filterwarnings('ignore:.*(Sparse CSR|quantize_per_tensor)')
@pytest.mark.parametrize('kind', WEIGHTS)
def test_weights_that_are_no_numbers_of_their_own(kind, tmp_path, capsys):
    model = build()
    state = dict(model.state_dict())
    name = next(key for key in state if key.endswith('conv1.weight') or key.endswith('.0.weight'))
    state[name] = WEIGHTS[kind](state[name])
    torch.save(dict(state_dict=state, meta={}), tmp_path / 'odd.pth')
    out = tmp_path / 'out'
    args = [NF, str(tmp_path / 'odd.pth'), '--out-dir', str(out)]
    run(*args, status=2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith('error: ')
    assert 'odd.pth' in line
    assert not out.exists()


def test_rules_are_listed_and_thresholds_changed(monkeypatch, tmp_path, capsys):
    tool = runpy.run_path(str(ROOT / 'tools/spp_analysis.py'))
    with pytest.raises(SystemExit) as status:
        tool['parse_args'](['--list-rules'])
    assert status.value.code == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(RULES)
    parse = tool['parse_args']
    assert parse([NF, '--threshold', 'explosion=50']).threshold == {'explosion': 50.0}
    for arguments, words in (
        (['--threshold', 'explosion=x'], 'takes RULE=NUMBER'),
        (['--threshold', 'exploded=3'], "no threshold 'exploded'"),
        (['--fail-on', 'exploded'], "--fail-on: invalid choice: 'exploded'"),
    ):
        with pytest.raises(ValueError, match=words):
            parse([NF, *arguments])


def test_a_rule_that_the_config_imports(monkeypatch, tmp_path, capsys):
    (tmp_path / 'green_rules.py').write_text(
        'from nf_plugins.registry import RULES\n'
        '@RULES.register_module(force=True)\n'
        'def green(profile, blocks, *, hue: float = 1.0):\n'
        '    """Green."""\n'
        "    yield 'warning', 1, f'hue {hue:g}'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = tmp_path / 'net.py'
    config.write_text(
        f'_base_ = {NF!r}\n' + "custom_imports = dict(imports=['green_rules'])\n", 'utf-8'
    )
    before = dict(RULES._module_dict)
    try:
        options = ['--out-dir', tmp_path / 'o', '--fail-on', 'green', '--threshold', 'green=7']
        monkeypatch.setattr(sys, 'argv', ['', str(config), *map(str, options), '--batch-size', '2'])
        with pytest.raises(SystemExit) as status:
            runpy.run_path(str(ROOT / 'tools/spp_analysis.py'), run_name='__main__')
        assert status.value.code == 1
        assert 'warning: green: hue 7' in capsys.readouterr().out
    finally:
        RULES._module_dict.clear()
        RULES._module_dict.update(before)


@pytest.mark.slow
def test_a_sweep(tmp_path, capsys):
    options = ['--out-dir', tmp_path, '--batch-size', 2, '--sweep']
    widths = 'model.backbone.base_channels=8,4,0'
    (tmp_path / 'sweep.svg').write_text('of another network')
    run(NF, *options, widths, '--format', 'png', 'csv', status=2)
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        'error: these values of model.backbone.base_channels cannot be measured: 0: cannot build '
        f'the backbone of {NF}: base_channels must be a positive integer, got 0'
    ]
    assert 'avg_var against model.backbone.base_channels: ' in ' '.join(out.split())
    assert {path.name for path in tmp_path.iterdir()} == {'sweep.png', 'sweep.json', 'sweep.csv'}
    data = json.loads((tmp_path / 'sweep.json').read_text())
    assert (data['schema'], data['option']) == ('nf_plugins.sweep/1', widths.partition('=')[0])
    assert data['values'] == [4, 8]
    assert list(data['failed']) == ['0']
    assert list(data['words']) == ['avg_sq_mean', 'avg_var', 'res_avg_var']
    for value, profile in zip([4, 8], data['profiles']):
        single = ['--cfg-options', f'model.backbone.base_channels={value}']
        run(NF, *options[:-1], *single)
        assert json.loads((tmp_path / 'spp.json').read_text())['blocks'] == profile['blocks']
    run(NF, *options, 'seed=0,1', '--fail-on', 'zero_branch', status=1)
    assert json.loads((tmp_path / 'sweep.json').read_text())['failed'] == {}


@pytest.mark.parametrize(
    ('wrong', 'says'),
    [
        (['--sweep', 'model.backbone.depth'], '--sweep takes OPTION=VALUE,VALUE'),
        (['--sweep', 'model.backbone.depth=26'], 'takes two or more values'),
        (['--sweep', 'seed=1,2', '--compare', BN], '--sweep does not go with --compare'),
        (['--sweep', 'seed=1,2', '--format', 'html'], '--sweep does not go with --compare or'),
        (['--sweep', 'batch_size=a,-1'], 'no value of batch_size can be measured: '),
        (['--sweep', 'input_size=0,[8,8,8]'], 'no value of input_size can be measured: '),
        (['--sweep', 'model.backbone.no_such=1,2'], 'no value of model.backbone.no_such can be'),
    ],
)
def test_a_bad_sweep_is_one_line(wrong, says, tmp_path, capsys):
    run(NF, '--out-dir', tmp_path / 'out', *wrong, status=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: ')
    assert says in line
    assert not list(tmp_path.glob('out/*'))
