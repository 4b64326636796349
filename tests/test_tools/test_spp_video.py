import json
import os
import re
import shutil
import tempfile

import imageio.v3 as iio
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from nf_plugins.models import NFResNet
from nf_plugins.spp import analyze
from nf_plugins.spp.inputs import gaussian_batch
from nf_plugins.spp.report import film

from ..tools import run_tool

CONFIG = "model = dict(backbone=dict(type='nf_plugins.NFResNet', depth=26, base_channels=4))\n"
BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')


def run(*args):
    return run_tool('spp_video', *args)


def count_frames(path):
    return len(iio.imread(path, index=...))


def files(folder):
    return sorted(os.path.join(root, name) for root, _, names in os.walk(folder) for name in names)


def grow(net):
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith('gain'):
                parameter.mul_(1 + 0.3 * torch.rand_like(parameter)).add_(0.1)


@pytest.fixture(scope='module')
def contents():
    """What the files of a training of five epochs hold."""
    torch.manual_seed(0)
    net, x = NFResNet(26, base_channels=4), torch.randn(2, 3, 32, 32)
    found = []
    for epoch in range(1, 6):
        record = analyze(net, x).to_dict()
        found.append({**record, 'config': 'some/net.py', 'epoch': epoch, 'iter': 7 * epoch})
        grow(net)
    return found


def write(folder, contents):
    folder.mkdir(parents=True, exist_ok=True)
    for content in contents:
        (folder / f'epoch_{content["epoch"]}.json').write_text(json.dumps(content))
    return folder


@pytest.fixture
def work_dir(contents, tmp_path):
    """A training that was resumed after its second epoch, having run to the third."""
    write(tmp_path / 'work/20250101_000000/spp', contents[:3])
    write(tmp_path / 'work/20250102_000000/spp', contents[2:])
    return tmp_path / 'work'


@pytest.fixture
def drawn(monkeypatch):
    """The records that the tool draws."""
    seen = []

    def render(records, form, *args):
        seen.extend(records)
        return b''

    monkeypatch.setattr(film, 'render', render)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize('form', ['gif', 'mp4', 'html'])
def test_a_resumed_training(form, work_dir, capsys):
    out = work_dir / 'with spaces' / f'spp.{form.upper()}'
    assert run(work_dir, '--out', out, '--fps', 2.5, '--title', 'ünicode $1') == 0
    if form != 'html':
        assert count_frames(out) == 5
    printed = capsys.readouterr()
    assert printed.out == f'written: {out} (5 frames)\n'
    assert '5/5' in printed.err
    assert [p.name for p in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize(
    ('source', 'epochs', 'runs'),
    [
        ('.', [1, 2, 3, 4, 5], [1, 1, 2, 2, 2]),
        ('20250101_000000', [1, 2, 3], [1, 1, 1]),
        ('20250101_000000/spp', [1, 2, 3], [1, 1, 1]),
        ('*/spp/*.json', [1, 2, 3, 4, 5], [1, 1, 2, 2, 2]),
        ('*/spp/epoch_4.json', [4], [2]),
    ],
)
def test_what_can_be_a_source(source, epochs, runs, work_dir, drawn, tmp_path):
    sources = sorted(work_dir.glob(source)) if '*' in source else [work_dir / source]
    assert run(*sources, '--out', tmp_path / 'a.gif') == 0
    assert [r.epoch for r in drawn] == epochs
    assert [f'2025010{run}_000000' in r.source for r, run in zip(drawn, runs)] == [True] * len(runs)


@pytest.mark.slow
def test_checkpoints_on_the_same_noise(drawn, tmp_path):
    (tmp_path / 'net.py').write_text(CONFIG)
    net = MODELS.build(Config.fromfile(tmp_path / 'net.py').model.backbone)
    expected, names = [], []
    for epoch in (2, 10):
        grow(net)
        state = {f'backbone.{key}': value for key, value in net.state_dict().items()}
        names.append(tmp_path / f'epoch_{epoch}.pth')
        torch.save(dict(state_dict=state, meta=dict(epoch=epoch, iter=5 * epoch)), names[-1])
        expected.append(analyze(net, gaussian_batch((2, 3, 32, 40), 3), mode='eval', seed=3))
    options = [*('--mode', 'eval', '--seed', 3), *('--input-size', 32, 40), *('--batch-size', 2)]
    out = tmp_path / 'a.gif'
    assert run(tmp_path / 'net.py', *names[::-1], '--out', out, *options) == 0
    assert [(r.epoch, r.iter, r.source) for r in drawn] == [
        (2, 10, str(names[0])),
        (10, 50, str(names[1])),
    ]
    assert [r.profile.blocks for r in drawn] == [profile.blocks for profile in expected]

    # Weights alone do not say when they were made: they stay as given.
    drawn.clear()
    torch.save(net.state_dict(), tmp_path / 'weights.pth')
    arguments = [tmp_path / 'net.py', names[1], tmp_path / 'weights.pth', names[0]]
    assert run(*arguments, '--out', out, *options) == 0
    assert [r.label for r in drawn] == [
        'epoch 10, iteration 50',
        'weights.pth',
        'epoch 2, iteration 10',
    ]
    assert drawn[0].profile.blocks == drawn[1].profile.blocks == expected[1].blocks


OUT = ['--out', 'a.gif']
CASES = [
    ([], 'required: SOURCE, --out'),
    (['work'], 'required: --out'),
    (['missing', *OUT], 'no such file or folder: missing'),
    (['missing.json', *OUT], 'no such file or folder: missing.json'),
    (['missing.py', 'ok.pth', *OUT], 'no config at missing.py'),
    (['empty', *OUT], 'empty holds no records'),
    (['work', 'work', *OUT], 'one work dir at a time'),
    (['work', 'ok.json', *OUT], 'one work dir at a time'),
    (['cut.json', *OUT], 'cut.json is not valid JSON'),
    (['ok.json', 'cut.json', *OUT], 'cut.json is not valid JSON'),
    (['cut', *OUT], 'cut.json is not valid JSON'),
    (['schema.json', *OUT], "schema.json is no record: its schema is 'other/1'"),
    (['no_epoch.json', *OUT], 'no_epoch.json has no integer epoch and iter'),
    (['ok.json', 'eval.json', *OUT], 'ok.json and eval.json are of different modes'),
    (['ok.json', 'other.json', *OUT], 'ok.json and other.json are of different networks'),
    (['ok.pth', *OUT], 'ok.pth: checkpoints need their config before them'),
    (['work', '--out', 'a.avi'], '--out must end in .gif, .mp4, .html, got a.avi'),
    (['work', '--out', 'gif'], '--out must end in'),
    (['work', '--out', 'ok.json/a.gif'], 'cannot write ok.json/a.gif'),
    (['work', '--out', 'folder.gif'], 'cannot write folder.gif: it is a folder'),
    (['work', *OUT, '--fps', '0'], "'0' is not a number from 0.01 to 100"),
    (['work', *OUT, '--fps', '-3'], "'-3' is not a number"),
    (['work', *OUT, '--fps', 'nan'], "'nan' is not a number"),
    (['work', *OUT, '--fps', 'fast'], "'fast' is not a number"),
    (['work', *OUT, '--mode', 'eval'], '--mode is for a config with checkpoints'),
    (['work', *OUT, '--batch-size', '2'], '--batch-size is for a config'),
    (['net.py', *OUT], 'net.py needs checkpoints after it'),
    (['net.py', 'missing.pth', *OUT], 'no checkpoint at missing.pth'),
    (['net.py', 'ok.pth', 'cut.pth', *OUT], 'cut.pth is not a readable checkpoint'),
    (['net.py', 'ok.pth', 'linear.pth', *OUT], 'linear.pth is for another model: 0 of'),
    (['net.py', 'evil.pth', *OUT], 'evil.pth is refused: it names .*mkdir'),
    (['net.py', 'ok.pth', *OUT, '--device', 'quantum'], 'cannot use the device quantum'),
    (['net.py', 'ok.pth', *OUT, '--input-size', '1', '2', '3'], 'takes a side, or a height'),
    (['net.py', 'ok.pth', *OUT, '--batch-size', '0'], "'0' is not a positive integer"),
    (['net.py', 'ok.pth', *OUT, '--cfg-options', 'depth'], 'bad arguments'),
    (['no_backbone.py', 'ok.pth', *OUT], 'no_backbone.py has no backbone'),
]


class Harmful:
    def __reduce__(self):
        return os.mkdir, ('harmed',)


@pytest.fixture
def workplace(contents, work_dir, tmp_path, monkeypatch):
    first, second = contents[:2]
    renamed = [{**block, 'name': 'x.' + block['name']} for block in second['blocks']]
    for name, content in {
        'ok': first,
        'schema': {**first, 'schema': 'other/1'},
        'no_epoch': {key: value for key, value in first.items() if key != 'epoch'},
        'eval': {**second, 'mode': 'eval'},
        'other': {**second, 'blocks': renamed},
    }.items():
        (tmp_path / f'{name}.json').write_text(json.dumps(content))
    (tmp_path / 'cut.json').write_text(json.dumps(first)[:-10])
    (tmp_path / 'net.py').write_text(CONFIG)
    (tmp_path / 'no_backbone.py').write_text("model = dict(type='ImageClassifier')")
    for name in ('empty', 'folder.gif', 'cut/20250101_000000/spp'):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(tmp_path / 'cut.json', tmp_path / 'cut/20250101_000000/spp')
    torch.save(NFResNet(26, base_channels=4).state_dict(), tmp_path / 'ok.pth')
    (tmp_path / 'cut.pth').write_bytes((tmp_path / 'ok.pth').read_bytes()[:-100])
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / 'linear.pth')
    torch.save(dict(state_dict={'w': torch.ones(1)}, extra=Harmful()), tmp_path / 'evil.pth')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(('args', 'message'), CASES)
def test_bad_input(args, message, workplace, capsys):
    before = files(workplace)
    assert run(*args) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith('error: ')
    assert re.search(message, line), line
    assert files(workplace) == before
    assert not (workplace / 'harmed').exists()


def test_a_missing_package(workplace, monkeypatch, capsys):
    monkeypatch.setattr(film, 'missing_packages', lambda form: ['imageio', 'imageio-ffmpeg'])
    assert run('work', '--out', 'a.mp4') == 2
    message = 'a .mp4 file needs packages that are missing: pip install imageio imageio-ffmpeg'
    assert capsys.readouterr().err == f'error: {message}\n'


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_a_read_only_folder(workplace, capsys):
    (workplace / 'locked').mkdir(mode=0o500)
    assert run('work', '--out', 'locked/a.gif') == 2
    assert 'cannot write locked/a.gif' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize('form', ['gif', 'mp4', 'html'])
def test_an_interrupt_leaves_nothing(form, workplace, monkeypatch, capsys):
    def stop(*args):
        raise KeyboardInterrupt

    target = (film, 'hover')
    if form != 'html':  # in the middle of the encoding
        frame = film.Painter.frame
        target = (film.Painter, 'frame')

        def stop(self, number):
            if number == 2:
                raise KeyboardInterrupt
            return frame(self, number)

    (workplace / 'tmp').mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(workplace / 'tmp'))
    monkeypatch.setattr(*target, stop)
    before = files(workplace)
    assert run('work', '--out', f'new/a.{form}') == 130
    assert capsys.readouterr().err.splitlines()[-1] == 'interrupted'
    assert files(workplace) == before
    assert not (workplace / 'new').exists()
    assert not list((workplace / 'tmp').iterdir())


def browser_path():
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture(scope='module')
def browser():
    sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    path = browser_path()
    if path is None:
        pytest.skip(f'no browser: none of {", ".join(BROWSERS)} is on the path')
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


def curves(page):
    """The paths as they are drawn."""
    return page.evaluate(
        "[...document.querySelectorAll('.scatterlayer .trace path.js-line')]"
        ".map(path => path.getAttribute('d'))"
    )


def ticks(page):
    return page.evaluate(
        "[...document.querySelectorAll('.xtick text, .ytick text, .x2tick text, .y2tick text, "
        ".y3tick text')].map(t => [t.textContent, t.getAttribute('x'), t.getAttribute('y'), "
        "t.getAttribute('transform')])"
    )


@pytest.mark.slow
def test_the_page_in_a_browser(browser, contents, work_dir):
    # A branch that is zero at first: the third panel's axis is symlog, which plotly lacks.
    for path in work_dir.glob('*/spp/epoch_1.json'):
        content = json.loads(path.read_text())
        for block in content['blocks'][1:]:
            block['res_avg_var'] = 0.0
        content['blocks'][2]['avg_var'] = None
        path.write_text(json.dumps(content))
    out = work_dir / 'spp.html'
    assert run(work_dir, '--out', out, '--fps', 20, '--title', 'A <title>') == 0

    page = browser.new_page(viewport=dict(width=1300, height=700))
    problems, requests = [], []
    page.on('console', lambda m: problems.append(m.text) if m.type != 'log' else None)
    page.on('pageerror', lambda error: problems.append(str(error)))
    page.on('request', lambda request: requests.append(request.url))
    page.goto(out.as_uri())
    page.wait_for_selector('.scatterlayer .trace path.js-line', state='attached')
    assert page.title() == 'A <title> (train mode)'
    assert page.text_content('.gtitle') == 'A <title> (train mode)'
    assert page.locator('.cartesianlayer .subplot').count() == 3
    first, at_start = curves(page), ticks(page)
    # Three measured curves, two expected ones and an empty one for the legend; one has a gap.
    assert page.locator('.scatterlayer .trace').count() == 6
    assert len(first) == 6
    # The panels and the controls fill the page.
    assert page.locator('.main-svg').first.bounding_box()['height'] == 700
    legend = page.locator('.legendtext').all_text_contents()
    assert legend == ['the network', 'expected at initialisation']
    assert all(path.startswith('M') and 'NaN' not in path for path in first)
    assert page.locator('.slider-label', has_text='epoch 1, iteration 7').count() >= 1

    # Hover over the last block of the first panel.
    points = page.locator('.scatterlayer .trace').first.locator('path.point')
    points.last.hover(force=True)
    page.wait_for_selector('.hoverlayer .hovertext')
    last = contents[0]['blocks'][-1]
    hovered = page.locator('.hoverlayer .hovertext').first.text_content()
    for part in (last['name'], last['kind'], 'x'.join(map(str, last['shape']))):
        assert part in hovered
    assert f'block {last["index"]}:' in hovered
    value = float(re.search(r'avg_sq_mean (\S+)', hovered)[1].replace('\N{MINUS SIGN}', '-'))
    assert value == pytest.approx(last['avg_sq_mean'], rel=1e-4)

    # The slider changes what is drawn, and only that.
    rail = page.locator('.slider-rail-touch-rect').bounding_box()
    middle = rail['y'] + rail['height'] / 2
    page.mouse.click(rail['x'] + rail['width'] - 2, middle)
    page.wait_for_function(
        "document.querySelector('.js-plotly-plot')._fullLayout.sliders[0].active === 4"
    )
    page.wait_for_function(
        "d => document.querySelector('.scatterlayer path.js-line').getAttribute('d') !== d",
        arg=first[0],
    )
    final = curves(page)
    assert final[0] != first[0]
    assert len(final) == 5
    assert ticks(page) == at_start
    shown = page.evaluate("document.querySelector('.js-plotly-plot').data[0].y")
    assert shown == pytest.approx([b['avg_sq_mean'] for b in contents[4]['blocks']])
    page.mouse.click(rail['x'] + 2, middle)
    page.wait_for_function(
        "d => document.querySelector('.scatterlayer path.js-line').getAttribute('d') === d",
        arg=first[0],
    )

    # Play runs to the end, pause stops before it.
    button = page.locator('.updatemenu-button')
    button.filter(has_text='Play').click()
    page.wait_for_function(
        "document.querySelector('.js-plotly-plot')._fullLayout.sliders[0].active === 4"
    )
    page.wait_for_function(
        "d => document.querySelector('.scatterlayer path.js-line').getAttribute('d') === d",
        arg=final[0],
    )
    button.filter(has_text='Pause').click()
    assert problems == []
    assert requests == [out.as_uri()]
    page.close()


@pytest.mark.parametrize(
    'kind', ['pipe', 'folder', 'dangling', 'huge', 'brackets', 'latin', 'iter']
)
@pytest.mark.parametrize('source', ['.', 'file'])
def test_a_file_that_is_no_record(kind, source, work_dir, capsys, tmp_path):
    """One line at once: a pipe, for instance, is not waited for."""
    path = work_dir / '20250102_000000/spp/odd.json'
    if kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'folder':
        path.mkdir()
    elif kind == 'dangling':
        path.symlink_to('nowhere')
    elif kind == 'huge':
        with open(path, 'wb') as file:
            file.truncate(2**33)
    else:
        good = json.loads((path.parent / 'epoch_3.json').read_text())
        texts = dict(brackets=b'[' * 10**5, latin=b'{"schema": "\xff"}')
        path.write_bytes(texts.get(kind) or json.dumps(dict(good, iter='9')).encode())
    given = work_dir if source == '.' else path
    assert run(given, '--out', tmp_path / 'a.gif') == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith('error: ')
    assert 'odd.json' in line or (kind, source) == ('folder', 'file')
    assert not (tmp_path / 'a.gif').exists()
