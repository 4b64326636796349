"""Training as a user runs it, in processes of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nf_plugins.checkpoint import safe_load
from nf_plugins.utils.runner import latest_checkpoint

from ..conftest import ROOT

pytestmark = pytest.mark.slow
NF = ROOT / 'configs/nf_resnet/nf-resnet_digits.py'
TINY = [
    'model.backbone.base_channels=4',
    'model.neck.in_channels=128',
    'model.head.in_channels=128',
]


def command(tool, *args):
    return [sys.executable, str(ROOT / 'tools' / f'{tool}.py'), *map(str, args)]


def run(env, tool, *args, timeout=300):
    result = subprocess.run(
        command(tool, *args), env=env, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout + result.stderr


def train(env, work_dir, epochs, *args):
    options = ['--cfg-options', *TINY, f'train_cfg.max_epochs={epochs}']
    return run(env, 'train', NF, '--work-dir', work_dir, *args, *options)


def weights(path):
    return safe_load(path)['state_dict']


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_one_seed_gives_identical_weights_and_another_does_not(tool_env, tmp_path):
    for name in ('a', 'b'):
        train(tool_env, tmp_path / name, 1)
    train(tool_env, tmp_path / 'c', 1, '--cfg-options', 'randomness.seed=1')
    a, b, c = (weights(tmp_path / name / 'epoch_1.pth') for name in ('a', 'b', 'c'))
    assert equal(a, b)
    assert not equal(a, c)


def test_kill_in_the_middle_of_an_epoch_and_resume(tool_env, tmp_path):
    work_dir = tmp_path / 'work'
    options = ['--work-dir', work_dir, '--cfg-options', *TINY, 'train_cfg.max_epochs=3']
    with (tmp_path / 'log').open('w') as log:
        process = subprocess.Popen(
            command('train', NF, *options), env=tool_env, stdout=log, stderr=log
        )
        deadline = time.time() + 200
        # The second epoch is under way once it has logged an iteration.
        while not re.search(r'Epoch\(train\)\s+\[2\]\[10/', (tmp_path / 'log').read_text()):
            assert process.poll() is None, (tmp_path / 'log').read_text()[-2000:]
            assert time.time() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    checkpoints = list(work_dir.glob('*.pth'))
    assert checkpoints
    for path in checkpoints:
        assert weights(path)
    out = train(tool_env, work_dir, 3, '--resume')
    assert 'resumed epoch: 1' in out
    assert sorted(p.name for p in work_dir.glob('*.pth')) == [
        'epoch_1.pth',
        'epoch_2.pth',
        'epoch_3.pth',
    ]
    assert all(torch.isfinite(v).all() for v in weights(work_dir / 'epoch_3.pth').values())


def test_resume_survives_damaged_notes(tool_env, tmp_path):
    assert latest_checkpoint(tmp_path) is None
    train(tool_env, tmp_path, 2)
    whole = (tmp_path / 'epoch_2.pth').read_bytes()
    (tmp_path / 'epoch_10.pth').write_bytes(whole[:1000])
    (tmp_path / 'last_checkpoint').write_text('')
    assert Path(latest_checkpoint(tmp_path)).name == 'epoch_2.pth'
    assert 'resumed epoch: 2' in train(tool_env, tmp_path, 3, '--resume')


def test_test_tool_repeats_the_validation(tool_env, tmp_path):
    log = train(tool_env, tmp_path, 2)
    validated = re.findall(r'accuracy/top1: ([\d.]+)', log)[-1]
    out = tmp_path / 'metrics.json'
    options = ['--work-dir', tmp_path / 'test', '--out', out, '--out-item', 'metrics']
    run(tool_env, 'test', NF, tmp_path / 'epoch_2.pth', *options, '--cfg-options', *TINY)
    assert json.loads(out.read_text())['accuracy/top1'] == pytest.approx(float(validated), abs=1e-3)


def test_auto_scale_lr(tool_env, tmp_path):
    options = ['train_dataloader.batch_size=128', 'default_hooks.logger.interval=1']
    log = train(
        tool_env, tmp_path, 1, '--auto-scale-lr', '--no-validate', '--cfg-options', *options
    )
    assert 'batch size of 64 and the current batch size is 128' in log
    (scalars,) = tmp_path.glob('*/vis_data/scalars.json')
    first = json.loads(scalars.read_text().splitlines()[0])
    # Twice the config's 0.05, of which the warmup starts with a tenth.
    assert first['lr'] == pytest.approx(0.1 * 2 * 0.05, rel=0.01)
    assert 'Epoch(val)' not in log


def test_two_cpu_processes(tool_env, tmp_path):
    env = {**tool_env, 'PYTHON': sys.executable, 'PORT': '29611', 'OMP_NUM_THREADS': '1'}
    options = ['--work-dir', str(tmp_path), '--cfg-options', *TINY, 'train_cfg.max_epochs=1']
    result = subprocess.run(
        ['bash', str(ROOT / 'tools/dist_train.sh'), str(NF), '2', *options],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    log = result.stdout + result.stderr
    assert '[1][10/12]' in log  # 1438 images, two processes of 64
    assert len(re.findall(r'Epoch\(val\) \[1\]\[1/1\]', log)) == 1
    assert weights(tmp_path / 'epoch_1.pth')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
def test_amp(tool_env, tmp_path):
    train(tool_env, tmp_path, 1, '--amp')
    assert all(torch.isfinite(v).all() for v in weights(tmp_path / 'epoch_1.pth').values())


def installed() -> bool:
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        distribution('nfplugins')
    except PackageNotFoundError:
        return False
    return True


@pytest.mark.skipif(not installed(), reason='needs the built wheel: make setup')
class TestMim:
    """From an empty folder, with the installed wheel."""

    def mim(self, tmp_path, *args):
        env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
        env['PATH'] = os.pathsep.join([str(Path(sys.executable).parent), env['PATH']])
        result = subprocess.run(
            [sys.executable, '-m', 'mim', *map(str, args)],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-2000:]
        return result.stdout + result.stderr

    def test_train_test_and_run(self, tmp_path):
        options = ['--cfg-options', *TINY]
        more = [*options, 'train_cfg.max_epochs=1']
        self.mim(tmp_path, 'train', 'nfplugins', NF.name, '--gpus', 0, '--work-dir', 'w', *more)
        checkpoint = tmp_path / 'w/epoch_1.pth'
        out = self.mim(
            tmp_path,
            *['test', 'nfplugins', NF.name, '--checkpoint', checkpoint, '--gpus', 0, *options],
        )
        assert 'accuracy/top1' in out
        run = ['run', 'nfplugins', 'spp_analysis', NF.name]
        self.mim(tmp_path, *run, checkpoint, '--out-dir', 'spp', *options)
        assert (tmp_path / 'spp/spp.png').is_file()

    def test_train_with_mmpretrains_script(self, tmp_path):
        more = ['--cfg-options', *TINY, 'train_cfg.max_epochs=1']
        args = ['train', 'mmpretrain', NF, '--gpus', 0, '--work-dir', 'w', *more]
        assert 'accuracy/top1' in self.mim(tmp_path, *args)

    def test_a_prefixed_name_needs_no_custom_imports(self, tmp_path):
        config = tmp_path / 'mine.py'
        config.write_text(
            NF.read_text().replace("'../", f"'{ROOT}/configs/")
            + '\ncustom_imports = None\n'
            + "default_hooks['checkpoint'] = dict(type='CheckpointHook', _delete_=True)\n"
            + "model['backbone']['type'] = 'nf_plugins.NFResNet'\n"
            + "model['neck']['type'] = 'nf_plugins.ReLUNeck'\n"
            + "model['neck']['act_cfg'] = dict(type='nf_plugins.GammaAct', act='ReLU')\n"
        )
        more = ['--cfg-options', *TINY, 'train_cfg.max_epochs=1']
        args = ['train', 'mmpretrain', config, '--gpus', 0, '--work-dir', 'w', *more]
        assert 'accuracy/top1' in self.mim(tmp_path, *args)
