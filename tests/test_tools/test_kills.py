"""Tools that are killed at any moment: files whole or absent, pairs never mixed, resume right.

``NF_PLUGINS_KILLS=40`` sets how many kills (``make test`` has 12).
"""

import importlib
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from nf_plugins.config import build_model, load_config
from nf_plugins.spp import analyze

from ..conftest import ROOT
from .test_train import NF, TINY

KILLS = int(os.environ.get('NF_PLUGINS_KILLS', 12))
SIGNALS = ('SIGINT', 'SIGTERM', 'SIGKILL')


def run_tool(tool, args, log):
    """Run a tool in a child of this process, which has imported everything: its process id."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = [tool, *args]
        runpy.run_path(str(ROOT / f'tools/{tool}.py'), run_name='__main__')
    except SystemExit as stop:
        os._exit(int(stop.code or 0))
    except KeyboardInterrupt:  # while the tool imports: so says Python, too
        os._exit(130)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def visible(folder):
    """The files of a folder by name, without the hidden ones."""
    found = {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.is_file()}
    return {name: data for name, data in found.items() if not name.startswith('.')}


def serve():
    """Run and kill what a plan says; print a line for each kill."""
    # No child has to import what all need.
    for name in ('matplotlib.figure', 'sklearn.datasets', 'nf_plugins.engine', 'torch._dynamo'):
        importlib.import_module(name)
    for name in ('mmpretrain.datasets', 'mmpretrain.evaluation', 'mmpretrain.visualization'):
        importlib.import_module(name)
    importlib.import_module('nf_plugins.datasets')
    importlib.import_module('nf_plugins.spp.plot')
    build_model(load_config(str(NF)), str(NF))

    torch.set_num_threads(1)
    folder, plan = Path(sys.argv[1]), json.loads(sys.argv[2])
    lengths = {}
    for number, (tool, name, fraction) in enumerate(plan):
        case = CASES[tool](folder)
        log = folder / f'{number}.log'
        if tool not in lengths:  # the whole of it, once; twice as the first warms up
            shutil.rmtree(case.out, ignore_errors=True)
            case.out.mkdir()
            for which in ('old', 'new'):
                start = time.perf_counter()
                status = wait(run_tool(case.tool, case.args(which), log))
                lengths[tool] = time.perf_counter() - start
                assert status == 0, log.read_text()[-3000:]
                case.keep(which)
        case.reset()
        child = run_tool(case.tool, case.args('new'), log)
        time.sleep(fraction * lengths[tool])
        os.kill(child, getattr(signal, name))
        status = wait(child)
        allowed = {'SIGINT': 130}.get(name, -getattr(signal, name))
        assert status in (0, allowed), (tool, name, status, log.read_text()[-3000:])
        case.check()
        if case.again is not None:
            status_again = wait(run_tool(case.tool, case.again(), log))
            assert status_again == 0, log.read_text()[-3000:]
        case.check_again()
        print(
            json.dumps(
                dict(
                    tool=tool,
                    signal=name,
                    at=round(fraction, 3),
                    status=status,
                    whole=round(lengths[tool], 2),
                )
            ),
            flush=True,
        )


class Case:
    """A tool that writes files of one generation over those of another."""

    def __init__(self, folder):
        self.folder, self.out = folder, folder / self.name

    def saved(self, which):
        return self.folder / f'{self.name}_{which}'

    def keep(self, which):
        shutil.rmtree(self.saved(which), ignore_errors=True)
        shutil.copytree(self.out, self.saved(which))

    def reset(self):
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.copytree(self.saved('old'), self.out)

    def check(self):
        """All files are of one generation, and whole."""
        now = visible(self.out)
        whole = [visible(self.saved(which)).items() for which in ('old', 'new')]
        assert any(now.items() <= files for files in whole), (self.name, sorted(now))

    def again(self):
        return self.args('new')

    def check_again(self):
        assert visible(self.out) == visible(self.saved('new'))


class Analysis(Case):
    name = tool = 'spp_analysis'

    def args(self, which):
        options = ['--seed', '1', '--format', 'png', 'csv'] if which == 'new' else ['--seed', '2']
        return [str(NF), '--out-dir', str(self.out), '--batch-size', '2', *options]


class Fold(Case):
    name, tool = 'fold', 'model_converters/fold'

    def args(self, which):
        config, checkpoint = self.folder / f'{which}.py', self.folder / f'{which}.pth'
        return [str(config), str(checkpoint), str(self.out / 'folded.pth')]


class Video(Case):
    name = tool = 'spp_video'

    def args(self, which):
        record = str(self.saved('records') / f'{which}.json')
        return [record, '--out', str(self.out / 'spp.gif')]


class Train(Case):
    """Every checkpoint is whole at any moment, and a resumed training reaches its end."""

    name = tool = 'train'

    def args(self, which):
        options = ['--cfg-options', *TINY, 'train_cfg.max_epochs=2', 'randomness.seed=0']
        options += ['train_dataloader.dataset.indices=128', 'val_dataloader.dataset.indices=64']
        return [str(NF), '--work-dir', str(self.out), '--no-persistent-workers', *options]

    def again(self):
        return [*self.args('new'), '--resume']

    def reset(self):
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()

    def check(self):
        for path in self.out.glob('*.pth'):
            torch.load(path, weights_only=False)
        for path in self.out.glob('*/spp/*.json'):
            json.loads(path.read_text())

    def check_again(self):
        self.check()
        meta = torch.load(self.out / 'epoch_2.pth', weights_only=False)['meta']
        assert (meta['epoch'], meta['iter']) == (2, 4)


CASES = {case.name: case for case in (Analysis, Fold, Video, Train)}

CONFIG = """
custom_imports = dict(imports=['nf_plugins'], allow_failed_imports=False)
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='nf_plugins.NFResNet', depth=26, base_channels=4, alpha={alpha}),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=128))
"""


@pytest.mark.slow
def test_random_kills(tool_env, tmp_path):
    init_default_scope('mmpretrain')
    records = tmp_path / 'spp_video_records'
    records.mkdir()
    for number, which in enumerate(('old', 'new')):
        (tmp_path / f'{which}.py').write_text(CONFIG.format(alpha=0.2 + 0.1 * number))
        model = MODELS.build(load_config(str(tmp_path / f'{which}.py')).model)
        torch.save(dict(state_dict=model.state_dict()), tmp_path / f'{which}.pth')
        profile = analyze(model.backbone, torch.randn(2, 3, 32, 32)).to_dict()
        (records / f'{which}.json').write_text(json.dumps(dict(profile, epoch=1, iter=number)))

    rng = random.Random(KILLS)
    tools = [list(CASES)[i % len(CASES)] for i in range(KILLS)]
    # A third of them around the end, where files take their names.
    moments = [rng.uniform(0.85, 1.0) if i % 3 == 0 else rng.random() for i in range(KILLS)]
    plan = [(t, SIGNALS[rng.randrange(3)], m) for t, m in sorted(zip(tools, moments))]
    script = 'from tests.test_tools.test_kills import serve; serve()'
    result = subprocess.run(
        [sys.executable, '-c', script, str(tmp_path), json.dumps(plan)],
        env={**tool_env, 'OMP_NUM_THREADS': '1'}, cwd=ROOT,
        capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    done = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{')]
    print(result.stdout)
    assert len(done) == KILLS
    assert sum(kill['status'] != 0 for kill in done) > KILLS / 2  # they were killed
