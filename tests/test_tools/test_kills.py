"""Tools that are killed at any moment: files whole or absent, pairs never mixed, resume right.

``NF_PLUGINS_KILLS=40`` sets how many kills (``make test`` has 8).
"""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from nf_plugins.config import load_config
from nf_plugins.spp import analyze

from ..tools import Apart
from .test_train import NF, TINY

KILLS = int(os.environ.get('NF_PLUGINS_KILLS', 8))
SIGNALS = ('SIGINT', 'SIGTERM', 'SIGKILL')


def visible(folder):
    """The files of a folder by name, without the hidden ones."""
    found = {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.is_file()}
    return {name: data for name, data in found.items() if not name.startswith('.')}


def run(case, args):
    """The CPU seconds that a tool needs."""
    process = Apart(case.tool, *args)
    assert process.wait() == 0, process.output[-3000:]
    return process.cpu_seconds


def kill(case, name, moment, pause):
    """Kill a tool after a part of its work, and check what is there: its exit status.

    Args:
        case: The tool.
        name: Of the signal.
        moment: The part of its CPU seconds, which a busy machine does not change.
        pause: Seconds that pass after that, as the tool also waits for the disk.
    """
    case.reset()
    process = Apart(case.tool, *case.args('new'))
    while process.cpu_seconds < moment * case.seconds and process.returncode is None:
        time.sleep(0.005)
    time.sleep(pause)
    process.send_signal(getattr(signal, name))
    status = process.wait()
    allowed = {'SIGINT': 130}.get(name, -getattr(signal, name))
    assert status in (0, allowed), (case.name, name, status, process.output[-3000:])
    case.check()
    if case.again is not None:
        run(case, case.again())
    case.check_again()
    print(dict(tool=case.name, signal=name, at=round(moment, 3), status=status))
    return status


class Case:
    """A tool that writes files of one generation over those of another."""

    def __init__(self, folder):
        self.folder, self.out = folder, folder / self.name

    def prepare(self):
        """Make both generations."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        for which in ('old', 'new'):
            self.seconds = run(self, self.args(which))
            self.keep(which)

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
def test_random_kills(tmp_path):
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
    # A third of them around the end, where files take their names; a tool may be done before that.
    moments = [rng.uniform(0.85, 1.0) if i % 3 == 0 else rng.uniform(0, 0.7) for i in range(KILLS)]
    cases = {name: case(tmp_path) for name, case in CASES.items()}
    for case in cases.values():
        case.prepare()
    for i, (tool, moment) in enumerate(zip(tools, moments)):
        name, pause = rng.choice(SIGNALS), 0.05 * rng.random()
        while kill(cases[tool], name, moment, pause) == 0 and i % 3:
            moment, pause = moment / 2, pause / 2  # on a busy machine it was done before
            assert moment > 0.01
