"""``tools/train.py --resume`` in work dirs of every kind: it goes on, or nothing is written."""

import hashlib
import os
import shutil
from unittest import mock

import pytest
import torch
from mmengine.runner import Runner

from nf_plugins.checkpoint import safe_load

from .. import tiny_training
from ..tools import run_tool

pytestmark = pytest.mark.slow


class Harmful:
    def __reduce__(self):
        return os.mkdir, ('harmed',)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Work dirs of two epochs, killed there: plain, and with other settings."""
    folder = tmp_path_factory.mktemp('trained')
    made = {}

    def make(name, **changes):
        if name not in made:
            tiny_training.train(folder / name, kill=2, **changes)
            made[name] = folder / name
        return made[name]

    return make


class Place:
    """A work dir, and the tool."""

    def __init__(self, folder, capfd):
        self.folder, self.work_dir, self.capfd = folder, folder / 'work', capfd

    def copy(self, source):
        shutil.copytree(source, self.work_dir)
        note = self.work_dir / 'last_checkpoint'
        note.write_text(note.read_text().replace(str(source), str(self.work_dir)))
        for path in self.work_dir.glob('*.pth'):  # the names of best checkpoints in them
            checkpoint = safe_load(path)
            info = checkpoint['message_hub']['runtime_info']
            if 'best_ckpt' in info:
                info['best_ckpt'] = info['best_ckpt'].replace(str(source), str(self.work_dir))
                torch.save(checkpoint, path)
        return self

    def change(self, name, change, to=None):
        path = self.work_dir / name
        checkpoint = safe_load(path)
        change(checkpoint)
        torch.save(checkpoint, path if to is None else to)

    def files(self):
        """Every file but the logs, by its content."""
        found = {}
        for path in sorted(self.folder.rglob('*')):
            name = str(path.relative_to(self.folder))
            if path.is_symlink():
                found[name] = os.readlink(path)
            elif path.is_file():
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                found[name] = 'folder' if path.is_dir() else 'special'
        return found

    def run(self, *args, options=()):
        """The exit status and the output of ``train.py``."""
        config = self.folder / 'tiny.py'
        config.write_text(tiny_training.CONFIG)
        args = [config, '--work-dir', self.work_dir, *args]
        args += ['--cfg-options', *options] if options else []
        self.capfd.readouterr()
        with mock.patch.object(Runner, '_log_env'):
            status = run_tool('train', *args)
        out, err = self.capfd.readouterr()
        assert 'Traceback' not in out + err
        assert not (self.folder / 'harmed').exists()
        return status, out, err

    def epoch(self):
        return safe_load(self.work_dir / 'epoch_4.pth')['meta']['epoch']


@pytest.fixture
def place(tmp_path, capfd, monkeypatch):
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'tiny.py').write_text(tiny_training.CONFIG)
    return Place(tmp_path, capfd)


def goes_on(place, *args, epoch=2, options=(), kept=True):
    """It resumes after ``epoch``; what was written before stays as it is."""
    before = place.files()
    with mock.patch.object(Runner, 'resume', autospec=True, side_effect=Runner.resume) as resume:
        status, out, err = place.run(*(args or ['--resume']), options=options)
    assert status == 0, err
    (call,) = resume.mock_calls
    checkpoint = safe_load(call.args[1])
    assert checkpoint['meta']['epoch'] == epoch
    after = place.files()
    if kept:
        for name, content in before.items():
            # mmengine writes these anew; a log, when two trainings start in one second.
            anew = name.endswith(('last_checkpoint', 'tiny.py', '.log'))
            assert anew or content in after.values(), name
    return out, err


def refuses(place, *args, options=()):
    """Exit status 2, one line, and nothing is written."""
    before = place.files()
    status, out, err = place.run(*(args or ['--resume']), options=options)
    assert status == 2, out
    (line,) = err.splitlines()
    assert line.startswith('error: ')
    assert line.isprintable()
    assert place.files() == before
    return line


TEMPLATE = {'default_hooks.checkpoint.filename_tmpl': 'ckpt_{:02d}.pth'}
AS_OPTION = ['default_hooks.checkpoint.filename_tmpl=ckpt_{:02d}.pth']


class TestItGoesOn:
    def test_after_a_kill(self, trained, place):
        goes_on(place.copy(trained('plain')))
        assert place.epoch() == 4

    @pytest.mark.parametrize('note', [True, False])
    @pytest.mark.parametrize('options', [AS_OPTION, []])
    def test_with_other_names(self, note, options, trained, place):
        place.copy(trained('names', **TEMPLATE))
        if not note:
            (place.work_dir / 'last_checkpoint').unlink()
        goes_on(place, options=options)

    @pytest.mark.parametrize('note', ['right', 'empty', 'none', 'nowhere', 'folder', 'binary'])
    def test_in_another_folder(self, note, place):
        elsewhere = place.folder / 'elsewhere'
        setting = f'default_hooks.checkpoint.out_dir={elsewhere}'
        tiny_training.train(place.work_dir, kill=2, **dict([setting.split('=')]))
        path = place.work_dir / 'last_checkpoint'
        assert path.read_text() == str(elsewhere / 'work/epoch_2.pth')
        if note != 'right':
            path.unlink()
        if note == 'folder':
            path.mkdir()
        if note in ('empty', 'nowhere', 'binary'):
            texts = dict(empty=b' ', nowhere=b'/nowhere/epoch_9.pth', binary=b'\0\xff\x1b')
            path.write_bytes(texts[note])
        if note == 'folder':  # mmengine could not write its own
            assert 'last_checkpoint is a folder' in refuses(place, options=[setting])
        else:
            goes_on(place, options=[setting])

    @pytest.mark.parametrize('note', [True, False])
    @pytest.mark.parametrize('name', ['~/kept', './kept/', '../kept', 'a b/[é]{x}'])
    def test_in_a_folder_of_any_name(self, name, note, place):
        """mmengine takes a `~` as it stands."""
        (place.folder / 'here').mkdir()
        os.chdir(place.folder / 'here')
        setting = {'default_hooks.checkpoint.out_dir': name}
        tiny_training.train(place.work_dir, kill=2, **setting)
        if not note:
            (place.work_dir / 'last_checkpoint').unlink()
        text = f"\ndefault_hooks['checkpoint']['out_dir'] = {name!r}\n"
        with mock.patch.object(tiny_training, 'CONFIG', tiny_training.CONFIG + text):
            goes_on(place)

    def test_with_the_hook_among_the_custom_ones(self, trained, place):
        hook = dict(type='mmengine.CheckpointHook', filename_tmpl='mine-{}.ckpt', interval=1)
        settings = {'default_hooks.checkpoint': None, 'custom_hooks': [hook]}
        place.copy(trained('custom', **settings))
        (place.work_dir / 'last_checkpoint').unlink()
        (place.work_dir / 'mine-1.ckpt').unlink()
        text = ''.join(f'{k}={v!r}\n' for k, v in {'custom_hooks': [hook]}.items())
        with mock.patch.object(
            tiny_training,
            'CONFIG',
            f"{tiny_training.CONFIG}\ndefault_hooks['checkpoint'] = None\n{text}",
        ):
            goes_on(place)

    def test_iterations_beside_epochs(self, trained, place):
        """`iter_500.pth` is an old one: the count inside decides."""
        place.copy(trained('plain'))
        shutil.copy(place.work_dir / 'epoch_1.pth', place.work_dir / 'iter_500.pth')
        for note in (True, False):
            if not note:
                (place.work_dir / 'last_checkpoint').unlink()
            goes_on(place)
            for epoch in (3, 4):
                (place.work_dir / f'epoch_{epoch}.pth').unlink()
            (place.work_dir / 'last_checkpoint').write_text(str(place.work_dir / 'epoch_2.pth'))

    def test_with_averaged_weights(self, trained, place):
        hooks = "custom_hooks = [dict(type='EMAHook', momentum=0.1)]\n"
        place.copy(trained('ema', custom_hooks=[dict(type='EMAHook', momentum=0.1)]))
        with mock.patch.object(tiny_training, 'CONFIG', tiny_training.CONFIG + hooks):
            goes_on(place)
            assert safe_load(place.work_dir / 'epoch_4.pth')['ema_state_dict']['steps'] == 8
            for change in ({}, {'module.fc.weight': torch.ones(1)}, {'module.fc.weight': 'x'}, 7):
                place.change('epoch_2.pth', lambda c, e=change: c.update(ema_state_dict=e))
                assert 'ema_state_dict' in refuses(place, '--resume', 'work/epoch_2.pth')

    def test_with_published_copies(self, trained, place):
        """A published copy has no optimizer; where it is the only file, it does not count."""
        place.copy(trained('plain'))
        short = {k: v for k, v in safe_load(place.work_dir / 'epoch_2.pth').items()
                 if k in ('meta', 'state_dict')}  # fmt: skip
        torch.save(short, place.work_dir / 'epoch_2-0a1b2c3d.pth')
        (place.work_dir / 'last_checkpoint').unlink()
        goes_on(place)
        for path in place.work_dir.glob('epoch_?.pth'):
            path.unlink()
        (place.work_dir / 'last_checkpoint').unlink()
        assert 'epoch_2-0a1b2c3d.pth' in refuses(place)

    @pytest.mark.parametrize('kind', ['refused', 'damaged', 'dangling', 'folder', 'pipe', 'unfit'])
    @pytest.mark.parametrize('noted', [True, False])
    def test_from_the_one_before_an_unusable_one(self, kind, noted, trained, place):
        place.copy(trained('plain'))
        path = place.work_dir / 'epoch_3.pth'
        if kind == 'refused':
            torch.save({**safe_load(place.work_dir / 'epoch_2.pth'), 'x': Harmful()}, path)
        elif kind == 'damaged':
            path.write_bytes((place.work_dir / 'epoch_2.pth').read_bytes()[:1500])
        elif kind == 'dangling':
            path.symlink_to('/nowhere/epoch_3.pth')
        elif kind == 'folder':
            path.mkdir()
        elif kind == 'pipe':
            os.mkfifo(path)
        else:
            place.change('epoch_2.pth', lambda c: c['optimizer'].update(param_groups=[]), path)
        (place.work_dir / 'last_checkpoint').write_text(str(path) if noted else '')
        _, err = goes_on(place)
        lines = err.splitlines()
        assert len([line for line in lines if line.startswith('passed over: ')]) == 1
        assert os.path.lexists(place.work_dir / 'epoch_3.pth.passed_over')
        assert safe_load(path)['meta']['epoch'] == 3

    def test_from_the_named_one(self, trained, place):
        place.copy(trained('plain'))
        goes_on(place, '--resume', 'work/epoch_1.pth', epoch=1, kept=False)

    def test_as_the_config_says(self, trained, place):
        place.copy(trained('plain'))
        goes_on(place, '--no-validate', options=['resume=True'])


class TestItStarts:
    @pytest.mark.parametrize('kind', ['no folder', 'empty', 'empty note', 'weights'])
    def test_where_there_is_none(self, kind, place):
        if kind != 'no folder':
            place.work_dir.mkdir()
        if kind == 'empty note':
            (place.work_dir / 'last_checkpoint').write_text('\n')
        if kind == 'weights':
            torch.save(dict(state_dict={'fc.weight': torch.ones(3, 4)}), 'work/pretrained.pth')
        status, out, err = place.run('--resume')
        assert status == 0, err
        assert out.count('no checkpoint in') == 1
        assert place.epoch() == 4

    def test_from_the_configs_weights(self, place):
        """``load_from`` counts where there is nothing to go on with, also without ``resume``."""
        torch.save(dict(state_dict={'fc.weight': torch.full((3, 4), 7.0)}), 'start.pth')
        options = ['load_from=start.pth', 'optim_wrapper.optimizer.lr=0']
        for args in (['--resume'], []):
            status, _, err = place.run(*args, options=options)
            assert status == 0, err
            assert bool((safe_load('work/epoch_4.pth')['state_dict']['fc.weight'] == 7).all())
            shutil.rmtree(place.work_dir)


def test_a_finished_training_says_so(trained, place):
    place.copy(trained('plain'))
    goes_on(place)
    before = place.files()
    status, out, _ = place.run('--resume')
    assert status == 0
    assert 'is finished' in out
    assert '4 of 4 epochs' in out
    assert place.files() == before


def remove_all(place):
    for path in place.work_dir.glob('*.pth'):
        path.unlink()


class TestItRefuses:
    def test_where_all_are_damaged(self, trained, place):
        place.copy(trained('plain'))
        for path in place.work_dir.glob('*.pth'):
            path.write_bytes(path.read_bytes()[:1500])
        line = refuses(place)
        assert 'epoch_1.pth' in line
        assert 'epoch_2.pth' in line
        assert '--work-dir' in line

    @pytest.mark.parametrize('name', ['epoch_1.pth', 'iter_7.pth', 'ckpt_7.pth', 'any.pth'])
    def test_where_the_only_one_is_refused(self, name, place):
        place.work_dir.mkdir()
        torch.save(dict(state_dict={}, extra=Harmful()), place.work_dir / name)
        assert 'mkdir' in refuses(place)

    def test_where_the_note_points_nowhere(self, trained, place):
        place.copy(trained('plain'))
        remove_all(place)
        assert 'epoch_2.pth' in refuses(place)

    def test_where_only_the_best_is_left(self, trained, place):
        place.copy(trained('best', **{'default_hooks.checkpoint.save_best': 'acc'}))
        for path in place.work_dir.glob('epoch_*.pth'):
            path.unlink()
        (place.work_dir / 'last_checkpoint').unlink()
        assert 'has no optimizer' in refuses(place)

    def test_where_it_may_not_read(self, trained, place, monkeypatch):
        """Root may read everything, so the refusal is made here."""
        place.copy(trained('plain'))

        def no(path, *args, **kwargs):
            raise PermissionError(13, 'Permission denied', os.fspath(path))

        monkeypatch.setattr('nf_plugins.cli.resuming.safe_load', no)
        assert 'Permission denied' in refuses(place)

    @pytest.mark.parametrize('what', ['the note', 'the folder'])
    def test_where_it_may_not_look(self, what, trained, place, monkeypatch):
        """Neither is the same as a work dir without checkpoints."""
        place.copy(trained('plain'))
        if what == 'the folder':
            (place.work_dir / 'last_checkpoint').unlink()
        module = 'nf_plugins.checkpoint.work_dir'

        def no(path, *args, **kwargs):
            raise PermissionError(13, 'Permission denied', os.fspath(path))

        if what == 'the note':
            monkeypatch.setattr(f'{module}.open', no, raising=False)
        else:
            monkeypatch.setattr(f'{module}.os.listdir', no)
            monkeypatch.setattr(f'{module}.glob.glob', lambda path: [])
        status, out, err = place.run('--resume')
        assert (status, err.count('\n')) == (2, 1), out
        assert 'Permission denied' in err
        assert not (place.work_dir / 'epoch_3.pth').exists()

    @pytest.mark.parametrize('name', ['last_checkpoint', 'tiny.py'])
    @pytest.mark.parametrize('kind', ['link', 'dangling', 'folder', 'pipe'])
    @pytest.mark.parametrize('args', [['--resume'], ['--no-validate']], ids=['resume', 'start'])
    def test_where_a_start_would_write_through_a_link(self, args, kind, name, place):
        place.work_dir.mkdir()
        path, victim = place.work_dir / name, place.folder / 'victim'
        victim.write_text('mine')
        if kind in ('link', 'dangling'):
            path.symlink_to(victim if kind == 'link' else '/nowhere')
        elif kind == 'folder':
            path.mkdir()
        else:
            os.mkfifo(path)
        assert name in refuses(place, *args)

    @pytest.mark.parametrize('kind', ['dangling', 'folder', 'pipe', 'nothing'])
    def test_the_named_one(self, kind, trained, place):
        place.copy(trained('plain'))
        path = place.folder / 'named.pth'
        if kind == 'dangling':
            path.symlink_to('/nowhere')
        elif kind == 'folder':
            path.mkdir()
        elif kind == 'pipe':
            os.mkfifo(path)
        assert 'named.pth' in refuses(place, '--resume', 'named.pth')

    def test_another_model(self, trained, place):
        place.copy(trained('plain'))
        assert 'another model' in refuses(place, options=['model.width=2'])

    @pytest.mark.parametrize('where', ['work/epoch_2.pth', 'auto'])
    def test_fewer_parameter_groups(self, where, trained, place):
        place.copy(trained('plain'))
        options = ['optim_wrapper.paramwise_cfg.custom_keys.fc.lr_mult=0.5']
        for name in ('epoch_1.pth', 'epoch_2.pth'):
            place.change(name, lambda c: c['optimizer']['param_groups'].clear())
        assert '0 parameter groups' in refuses(place, '--resume', where, options=options)

    def test_words_for_a_terminal(self, place):
        place.work_dir.mkdir()
        (place.work_dir / 'last_checkpoint').write_text('/no\x1b]0;owned\x07/epoch_1.pth')
        assert r'\x1b]0;owned' in refuses(place)


HOSTILE = {
    'a folder as the best': dict(best_ckpt='VICTIM', best_score=-1e9),
    'a file as the best': dict(best_ckpt='VICTIM/file', best_score=-1e9),
    'an own file as the best': dict(best_ckpt='WORK/epoch_1.pth', best_score=-1e9),
    'the own best with a low score': dict(best_score=-1e9),
    'a score that is a word': dict(best_score='x'),
    'ids to keep': dict(keep_ckpt_ids=[1, 2]),
    'ids that are paths': dict(keep_ckpt_ids=['../victim/file', 2]),
    'ids that are a number': dict(keep_ckpt_ids=7),
    'an owner of records': dict(spp_training=7),
    'a time left': {'eta': 'x', 'val/\x1b[2J': 1, 'loop_stage': []},
    'keys that are no words': {7: 'x', ('val', 1): 2},
    'a history as the hub': None,
}


@pytest.mark.parametrize('named', [True, False])
@pytest.mark.parametrize('info', HOSTILE.values(), ids=HOSTILE)
def test_hostile_checkpoints(info, named, trained, place):
    """Nothing outside is touched, nothing inside is deleted, whether it lies in or outside."""
    source = trained('best', **{'default_hooks.checkpoint.save_best': 'acc'})
    place.copy(source)
    victim = place.folder / 'victim'
    victim.mkdir()
    (victim / 'file').write_text('mine')

    def attack(checkpoint):
        hub = checkpoint['message_hub']
        if info is None:
            history = next(iter(hub['log_scalars'].values()))
            history.__dict__['_runtime_info'] = dict(best_ckpt=str(victim), best_score=-1e9)
            checkpoint['message_hub'] = history
            return
        for key, value in info.items():
            if isinstance(value, str):
                value = value.replace('VICTIM', str(victim)).replace('WORK', str(place.work_dir))
            hub['runtime_info'][key] = value
            hub['resumed_keys'][key] = True

    to = place.folder / 'evil.pth' if named else place.work_dir / 'epoch_2.pth'
    place.change('epoch_2.pth', attack, to)
    before = place.files()
    options = [
        'default_hooks.checkpoint.save_best=acc',
        'default_hooks.checkpoint.max_keep_ckpts=5',
    ]
    args = ['--resume', str(to)] if named else ['--resume']
    status, out, err = place.run(*args, options=options)
    after = place.files()
    assert '\x1b' not in out + err
    if status == 2:
        assert err.startswith('error: ')
        assert after == before
    else:
        assert status == 0, err
        assert place.epoch() == 4
        for name, content in before.items():
            rewritten = name.endswith(('last_checkpoint', '.log')) or 'epoch_2' in name
            assert name in after, name
            assert rewritten or after[name] == content, name
    assert (victim / 'file').read_text() == 'mine'
