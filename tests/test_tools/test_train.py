"""Training as a user runs it, in processes of its own: forked ones, but for one of each kind."""

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
from nf_plugins.cli.resuming import latest_checkpoint

from ..conftest import ROOT
from ..tools import Apart, command, run_apart

pytestmark = pytest.mark.slow
NF = ROOT / 'configs/nf_resnet/nf-resnet_digits.py'
TINY = [
    'model.backbone.base_channels=4',
    'model.neck.in_channels=128',
    'model.head.in_channels=128',
]

FEW = [
    *TINY,
    *(f'{split}_dataloader.dataset.indices=128' for split in ('train', 'val', 'test')),
]


def succeeds(result):
    """What a process has printed that ended well."""
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout + result.stderr


def run(tool, *args):
    return succeeds(run_apart(tool, *args))


def train(work_dir, epochs, *args):
    options = ['--cfg-options', *TINY, f'train_cfg.max_epochs={epochs}']
    return run('train', NF, '--work-dir', work_dir, *args, *options)


def kill_once(happened, *args):
    """Start a training and kill it once something has happened."""
    process = Apart('train', *args)
    deadline = time.time() + 200
    while not happened(process):
        assert process.poll() is None, process.output[-2000:]
        assert time.time() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def weights(path):
    return safe_load(path)['state_dict']


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_one_seed_gives_identical_weights_and_another_does_not(tool_env, tmp_path):
    """Also in a process that Python starts, and in one that is forked."""
    options = ['--cfg-options', *FEW, 'train_cfg.max_epochs=2']
    fresh = command('train', NF, '--work-dir', tmp_path / 'a', *options)
    env = {**tool_env, 'OMP_NUM_THREADS': '1'}  # as the forked ones: sums depend on the threads
    succeeds(subprocess.run(fresh, env=env, capture_output=True, text=True, check=False))
    train(tmp_path / 'b', 2, '--cfg-options', *FEW)
    train(tmp_path / 'c', 2, '--cfg-options', *FEW, 'randomness.seed=1')
    a, b, c = (weights(tmp_path / name / 'epoch_2.pth') for name in ('a', 'b', 'c'))
    assert equal(a, b)
    assert not equal(a, c)


def test_kill_in_the_middle_of_an_epoch_and_resume(tmp_path):
    work_dir = tmp_path / 'work'
    options = ['--work-dir', work_dir, '--cfg-options', *TINY, 'train_cfg.max_epochs=3']
    # The second epoch is under way once it has logged an iteration.
    pattern = r'Epoch\(train\)\s+\[2\]\[10/'
    kill_once(lambda process: re.search(pattern, process.output), NF, *options)
    checkpoints = list(work_dir.glob('*.pth'))
    assert checkpoints
    for path in checkpoints:
        assert weights(path)
    out = train(work_dir, 3, '--resume')
    assert 'resumed epoch: 1' in out
    assert sorted(p.name for p in work_dir.glob('*.pth')) == [
        'epoch_1.pth',
        'epoch_2.pth',
        'epoch_3.pth',
    ]
    assert all(torch.isfinite(v).all() for v in weights(work_dir / 'epoch_3.pth').values())


def test_resume_survives_damaged_notes(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    train(tmp_path, 2, '--cfg-options', *FEW)
    whole = (tmp_path / 'epoch_2.pth').read_bytes()
    (tmp_path / 'epoch_10.pth').write_bytes(whole[:1000])
    (tmp_path / 'last_checkpoint').write_text('')
    assert Path(latest_checkpoint(tmp_path)).name == 'epoch_2.pth'
    assert 'resumed epoch: 2' in train(tmp_path, 3, '--resume', '--cfg-options', *FEW)


@pytest.mark.parametrize('hook', [[], ['default_hooks.ema.type=EMAHook']], ids=['plain', 'ema'])
def test_test_tool_repeats_the_validation(hook, tmp_path):
    options = ['--cfg-options', *TINY, 'train_cfg.max_epochs=2', *hook]
    log = run('train', NF, '--work-dir', tmp_path, *options)
    validated = re.findall(r'accuracy/top1: ([\d.]+)', log)[-1]
    out = tmp_path / 'metrics.json'
    options = ['--work-dir', tmp_path / 'test', '--out', out, '--out-item', 'metrics']
    run('test', NF, tmp_path / 'epoch_2.pth', *options, '--cfg-options', *TINY, *hook)
    assert json.loads(out.read_text())['accuracy/top1'] == pytest.approx(float(validated), abs=1e-3)


def test_auto_scale_lr(tmp_path):
    options = ['train_dataloader.batch_size=128', 'default_hooks.logger.interval=1']
    log = train(tmp_path, 1, '--auto-scale-lr', '--no-validate', '--cfg-options', *options)
    assert 'batch size of 64 and the current batch size is 128' in log
    (scalars,) = tmp_path.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in scalars.read_text().splitlines()]
    first = next(line for line in lines if 'lr' in line)  # the records have none
    # Twice the config's 0.05, of which the warmup starts with a tenth.
    assert first['lr'] == pytest.approx(0.1 * 2 * 0.05, rel=0.01)
    assert 'Epoch(val)' not in log


def records(work_dir):
    found = [json.loads(p.read_text()) for p in Path(work_dir).glob('*/spp/*.json')]
    return sorted(found, key=lambda record: record['iter'])


def test_kill_resume_and_every_record_exactly_once(tmp_path):
    """Records every 5 iterations of 23 an epoch; killed in the middle of the second one."""
    work_dir = tmp_path / 'work'
    config = tmp_path / 'watched.py'
    config.write_text(
        f"_base_ = ['{NF}']\ncustom_hooks = [dict(type='SPPHook', interval=5, by_epoch=False)]\n"
    )
    options = ['--work-dir', work_dir, '--cfg-options', *TINY, 'train_cfg.max_epochs=3']
    record = 'spp/iter_00000035.json'
    kill_once(lambda process: list(work_dir.glob(f'*/{record}')), config, *options)
    assert (work_dir / 'epoch_1.pth').is_file()
    assert not (work_dir / 'epoch_2.pth').is_file()
    time.sleep(1)  # another timestamp
    out = run('train', config, '--resume', *options)
    assert 'resumed epoch: 1' in out
    found = records(work_dir)
    assert [r['iter'] for r in found] == list(range(0, 70, 5))
    assert len(list(work_dir.glob('*/spp'))) == 2
    straight = tmp_path / 'straight'
    run('train', config, '--work-dir', straight, *options[2:])
    # mmengine does not restore the random state of the augmentation, so the rest differs.
    for killed, whole in zip(found[:5], records(straight)[:5], strict=True):
        assert killed['iter'] < 23
        assert killed['blocks'] == whole['blocks']


def test_a_training_that_explodes_is_stopped(tmp_path):
    options = [
        *[*TINY, 'train_cfg.max_epochs=3', 'optim_wrapper.optimizer.lr=1e6'],
        'custom_hooks.0.stop_on=[non_finite]',
    ]
    config = tmp_path / 'watched.py'
    config.write_text(f"_base_ = ['{NF}']\ncustom_hooks = [dict(type='SPPHook')]\n")
    result = run_apart('train', config, '--work-dir', tmp_path / 'w', '--cfg-options', *options)
    assert result.returncode == 1, result.stderr[-2000:]
    last = result.stderr.strip().splitlines()[-1]
    assert re.match(r'stopped: iteration \d+: non_finite: the loss is not finite; the first', last)
    assert 'Traceback' not in result.stderr
    for path in (tmp_path / 'w').glob('*.pth'):
        assert all(torch.isfinite(v).all() for v in weights(path).values())


def two_processes(config, work_dir, *options, port):
    """As ``dist_train.sh`` starts them."""
    env = {**os.environ, 'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    args = ['train', config, '--launcher', 'pytorch', '--work-dir', work_dir, *options]
    processes = [Apart(*args, env={**env, 'RANK': r, 'LOCAL_RANK': r}) for r in '01']
    assert [process.wait() for process in processes] == [0, 0], processes[0].output[-2000:]
    return processes[0].output


def dist_train(env, config, work_dir, *options, port):
    env = {**env, 'PYTHON': sys.executable, 'PORT': str(port), 'OMP_NUM_THREADS': '1'}
    command = ['bash', str(ROOT / 'tools/dist_train.sh'), str(config), '2', '--work-dir', work_dir]
    result = subprocess.run(
        [*command, *options], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    return succeeds(result)


def test_two_cpu_processes(tool_env, tmp_path):
    """They train, evaluate, record and resume."""
    config = tmp_path / 'watched.py'
    config.write_text(f"_base_ = ['{NF}']\ncustom_hooks = [dict(type='SPPHook')]\n")
    options = ['--cfg-options', *TINY]
    epoch = [*options, 'train_cfg.max_epochs=1']
    log = dist_train(tool_env, config, tmp_path / 'w', *epoch, port=29611)
    assert '[1][10/12]' in log  # 1438 images, two processes of 64
    assert len(re.findall(r'Epoch\(val\) \[1\]\[1/1\]', log)) == 1
    assert weights(tmp_path / 'w/epoch_1.pth')
    assert [r['iter'] for r in records(tmp_path / 'w')] == [0, 12]
    time.sleep(1)
    epochs = ['--resume', *options, 'train_cfg.max_epochs=2']
    log = two_processes(config, tmp_path / 'w', *epochs, port=29612)
    assert 'resumed epoch: 1' in log
    assert [r['iter'] for r in records(tmp_path / 'w')] == [0, 12, 24]


@pytest.mark.parametrize(
    ('network', 'images', 'epochs'),
    # The large gradients of initalpha multiply rounding errors by 1000 with each step.
    [('nf_resnet/nf-resnet', 320, 2), ('pws_resnet/pws-resnet', 64, 1)],
)
def test_two_halves_of_a_batch_are_as_good_as_the_batch(network, images, epochs, tmp_path):
    """Without batch statistics two ranks train as one; initalpha reads all ranks' outputs."""
    config = tmp_path / 'half.py'
    base = ROOT / f'configs/{network}_digits.py'
    pws = 'pws' in network
    config.write_text(
        f"_base_ = ['{base}']\n"
        f'train_dataloader = dict(dataset=dict(indices={images}, pipeline=[\n'  # no random crop
        "    dict(type='Resize', scale=(16, 16), interpolation='bicubic'),\n"
        "    dict(type='PackInputs')]))\n"
        "custom_hooks = [dict(type='SPPHook', input='batch', mode='eval')]\n"
        + ('model = dict(backbone=dict(conv_cfg=dict(initalpha=True)))\n' if pws else '')
    )
    options = ['--cfg-options', *([] if pws else TINY), f'train_cfg.max_epochs={epochs}']
    run('train', config, '--work-dir', tmp_path / 'one', *options)
    halves = [*options, 'train_dataloader.batch_size=32']
    two_processes(config, tmp_path / 'two', *halves, port=29613)
    one, two = (weights(tmp_path / name / f'epoch_{epochs}.pth') for name in ('one', 'two'))
    if pws:
        assert (one['backbone.layer1.0.conv1.alpha'] - 1).abs().min() > 0.01
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=1e-4)
    for a, b in zip(records(tmp_path / 'one'), records(tmp_path / 'two'), strict=True):
        for block, other in zip(a['blocks'], b['blocks'], strict=True):
            # The batch of all ranks, as a rank has only half of the images.
            assert other['avg_var'] == pytest.approx(block['avg_var'], rel=1e-3)


@pytest.mark.cuda
def test_amp(tmp_path):
    train(tmp_path, 1, '--amp')
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
        options = ['--cfg-options', *FEW]
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

    def test_mmpretrains_script_and_a_prefixed_name_without_custom_imports(self, tmp_path):
        config = tmp_path / 'mine.py'
        config.write_text(
            NF.read_text().replace("'../", f"'{ROOT}/configs/")
            + '\ncustom_imports = None\n'
            + "default_hooks['checkpoint'] = dict(type='CheckpointHook', _delete_=True)\n"
            + "model['backbone']['type'] = 'nf_plugins.NFResNet'\n"
            + "model['neck']['type'] = 'nf_plugins.ReLUNeck'\n"
            + "model['neck']['act_cfg'] = dict(type='nf_plugins.GammaAct', act='ReLU')\n"
        )
        more = ['--cfg-options', *FEW, 'train_cfg.max_epochs=1']
        args = ['train', 'mmpretrain', config, '--gpus', 0, '--work-dir', 'w', *more]
        assert 'accuracy/top1' in self.mim(tmp_path, *args)
