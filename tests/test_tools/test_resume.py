"""A training goes on from mmengine's own checkpoints, which are opened weights-only.

With torch >= 2.6 the original mmengine does so only with nf_plugins imported.
"""

import os
import subprocess
import sys

import pytest
import torch

from nf_plugins.checkpoint import safe_load

from ..conftest import ROOT
from ..test_checkpoint.test_safe_load import Harmful
from ..tools import run_apart
from .test_train import FEW, NF, train

pytestmark = pytest.mark.versions

RUNNER = """
import sys

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

config, work_dir, *options = sys.argv[1:]
cfg = Config.fromfile(config)  # its custom_imports import nf_plugins
cfg.merge_from_dict({k: DictAction._parse_iterable(v) for k, v in (o.split('=') for o in options)})
cfg.work_dir, cfg.resume = work_dir, True
Runner.from_cfg(cfg).train()
"""
ITERATIONS = 2  # an epoch: 128 images in batches of 64


def resume_with_the_tool(work_dir, *options):
    return run_apart('train', NF, '--work-dir', work_dir, '--resume', '--cfg-options', *options)


def resume_with_a_plain_runner(work_dir, *options):
    return run_apart(RUNNER, NF, work_dir, *options, code=True)


def resume_with_the_configs_import(work_dir, *options):
    """In a fresh process it is the config that imports the plugins."""
    command = [sys.executable, '-c', RUNNER, str(NF), str(work_dir), *options]
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope='module')
def two_epochs(tmp_path_factory):
    """The checkpoint of a training of two epochs."""
    work_dir = tmp_path_factory.mktemp('two')
    train(work_dir, 2, '--cfg-options', *FEW)
    return work_dir / 'epoch_2.pth'


@pytest.fixture
def work_dir(two_epochs, tmp_path):
    """A work dir with that training's end."""
    path = tmp_path / two_epochs.name
    path.write_bytes(two_epochs.read_bytes())
    (tmp_path / 'last_checkpoint').write_text(str(path))
    return tmp_path


@pytest.mark.parametrize('resume', [resume_with_the_tool, resume_with_the_configs_import])
def test_a_training_resumes(resume, work_dir):
    result = resume(work_dir, *FEW, 'train_cfg.max_epochs=3')
    assert result.returncode == 0, result.stderr[-2000:]
    assert 'resumed epoch: 2' in result.stdout + result.stderr
    before, after = (safe_load(work_dir / f'epoch_{epoch}.pth') for epoch in (2, 3))
    assert (after['meta']['epoch'], after['meta']['iter']) == (3, 3 * ITERATIONS)
    # The log's history, which torch refuses by itself, goes on.
    losses, more = (c['message_hub']['log_scalars']['train/loss'].data[0] for c in (before, after))
    assert len(more) == 3 * ITERATIONS
    assert (more[: 2 * ITERATIONS] == losses).all()


def test_a_plain_runner_refuses_a_harmful_checkpoint(work_dir):
    path, trace = work_dir / 'epoch_2.pth', work_dir / 'trace'
    torch.save({**safe_load(path), 'extra': Harmful(str(trace))}, path)
    result = resume_with_a_plain_runner(work_dir, *FEW, 'train_cfg.max_epochs=3')
    assert result.returncode != 0
    assert 'mkdir' in result.stderr
    assert not trace.exists()
