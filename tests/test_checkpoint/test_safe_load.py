import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint as checkpoint_module
from torch import nn

from nf_plugins.checkpoint import SAFE_GLOBALS, check_match, safe_load, state_dict_of
from nf_plugins.checkpoint.haiku import read_haiku
from nf_plugins.errors import CheckpointError

from ..conftest import DATA


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


class HarmfulGetattr:
    """A builtin that mmengine's own checkpoints name, asked for something else."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


def test_an_mm_checkpoint_loads(tmp_path):
    path = tmp_path / 'epoch_1.pth'
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    checkpoint = dict(
        meta=dict(epoch=1, seed=np.int64(3), rate=np.float32(0.1)),
        state_dict=nn.Linear(2, 3).state_dict(),
        message_hub=dict(log_scalars=dict(loss=history)),
        array=np.arange(3),
    )
    torch.save(checkpoint, path)
    loaded = safe_load(path)
    assert torch.equal(loaded['state_dict']['weight'], checkpoint['state_dict']['weight'])
    assert loaded['message_hub']['log_scalars']['loss'].mean() == history.mean()
    assert loaded['meta'] == checkpoint['meta']
    np.testing.assert_array_equal(loaded['array'], checkpoint['array'])


@pytest.mark.parametrize(
    ('make', 'named'), [(Harmful, 'mkdir'), (lambda path: HarmfulGetattr(), r'getattr\(.*__init__')]
)
def test_harmful_checkpoints_are_refused(make, named, tmp_path):
    path, trace = tmp_path / 'evil.pth', tmp_path / 'trace'
    torch.save(dict(state_dict={}, extra=make(str(trace))), path)
    with pytest.raises(ValueError, match=named):
        safe_load(path)
    assert not trace.exists()


class ForgedPointer:
    """An object array from bytes: reading it would follow a forged pointer."""

    def __reduce__(self):
        return np.ndarray, ((1,), 'O', b'AAAAAAAA')


class ForgedDtype:
    def __reduce__(self):
        return np.dtype, ('V8', False, True), (3, '|', None, ('a',), {'a': ('O', 0)}, 8, 1, 0)


@pytest.mark.parametrize('forged', [ForgedPointer, ForgedDtype])
def test_forged_arrays_are_refused(forged, tmp_path):
    path = tmp_path / 'forged.pth'
    torch.save(dict(a=forged()), path)
    with pytest.raises(ValueError, match='is not a readable checkpoint|is refused'):
        safe_load(path)
    path.write_bytes(pickle.dumps({'NFNet': {'w': forged()}}))
    with pytest.raises(ValueError, match='is not a readable file of weights|is refused'):
        read_haiku(path)


def test_loaded_arrays_are_saved_as_arrays(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save(dict(a=np.arange(3.0), b=HistoryBuffer([1.0], [1])), path)
    torch.save(safe_load(path), path)
    assert b'nf_plugins' not in path.read_bytes()
    np.testing.assert_array_equal(safe_load(path)['a'], np.arange(3.0))


def test_a_dict_in_two_places_is_refused(tmp_path):
    tree = {'w': np.ones(1)}
    for _ in range(40):
        tree = {'a': tree, 'b': tree}
    loop = {}
    loop['a'] = loop
    for bad in (tree, loop):
        (tmp_path / 'bomb').write_bytes(pickle.dumps(bad))
        with pytest.raises(ValueError, match='one dict in two places'):
            read_haiku(tmp_path / 'bomb')


def test_damaged_checkpoints_raise_value_errors(tmp_path):
    path = tmp_path / 'damaged.pth'
    torch.save(dict(a=torch.arange(4), b=HistoryBuffer([1.0], [1]), c=np.arange(3)), path)
    whole, rng = path.read_bytes(), np.random.RandomState(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for position in rng.randint(0, len(whole), rng.randint(1, 5)):
            damaged[position] ^= 1 << rng.randint(8)
        path.write_bytes(damaged[: rng.randint(1, len(whole) + 1)] if rng.rand() < 0.3 else damaged)
        try:
            safe_load(path)
        except ValueError as error:
            assert '\n' not in str(error)


@pytest.mark.parametrize(
    'content', [b'', b'nothing', pickle.dumps([1, 2]), b'PK\x03\x04' + b'0' * 99]
)
def test_garbage_is_refused(content, tmp_path):
    path = tmp_path / 'garbage.pth'
    path.write_bytes(content)
    try:
        loaded = safe_load(path)
    except ValueError as error:
        assert str(path) in str(error)
        assert '\n' not in str(error)
    else:
        with pytest.raises(ValueError, match='holds no state dict'):
            state_dict_of(loaded, path)


def test_truncated_files_are_refused(tmp_path):
    path = tmp_path / 'whole.pth'
    torch.save(nn.Linear(64, 64).state_dict(), path)
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=r'whole\.pth is (not a readable checkpoint|refused)'):
            safe_load(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='no checkpoint at'):
        safe_load(tmp_path / 'none.pth')
    with pytest.raises(FileNotFoundError, match='no checkpoint at'):
        safe_load(tmp_path)


def test_state_dicts():
    state = nn.Linear(2, 3).state_dict()
    wrapped = {f'module.{key}': value for key, value in state.items()}
    assert state_dict_of(state).keys() == state.keys()
    assert state_dict_of(dict(state_dict=wrapped)).keys() == state.keys()
    for bad in (None, [1], {}, dict(state_dict=3), dict(epoch=1), {1: torch.ones(1)}):
        with pytest.raises(ValueError, match='holds no (state dict|weights)'):
            state_dict_of(bad)


def test_match():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    state = model.state_dict()
    check_match(state, model, 'ckpt')
    with pytest.raises(ValueError, match=r'4 of 4 keys match; .* more \(not in the model\)'):
        check_match({**state, 'more': torch.ones(1)}, model, 'ckpt')
    check_match({**state, 'more': torch.ones(1)}, model, 'ckpt', minimum=0)
    with pytest.raises(ValueError, match=r'0\.bias \(shape \(\) instead of'):
        check_match({**state, '0.bias': 3}, model, 'ckpt')
    renamed = {key.replace('0.', 'zero.'): value for key, value in state.items()}
    message = r'ckpt is for another model: 2 of 4 keys match; .* 0\.weight \(missing\), 0\.bias'
    with pytest.raises(ValueError, match=message):
        check_match(renamed, model, 'ckpt')
    check_match(renamed, model, 'ckpt', minimum=0.5)
    other = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5)).state_dict()
    with pytest.raises(ValueError, match=r'1\.weight \(shape \(5, 3\) instead of \(4, 3\)\)'):
        check_match(other, model, 'ckpt')
    with pytest.raises(ValueError, match='0 of 4 keys match'):
        check_match({}, model, 'ckpt', minimum=0)


def test_the_list_of_others_is_left_alone_and_not_mixed_with_ours(tmp_path):
    """torch keeps a set of allowed globals, in which two for one name are taken at random."""
    before = set(torch.serialization.get_safe_globals())
    file = tmp_path / 'checkpoint.pth'
    torch.save({'value': np.float64(1.5), 'array': np.arange(3)}, file)
    for other in ([], [np.dtype, np.ndarray, type(np.dtype(np.float64))]):
        with torch.serialization.safe_globals(other):
            inside = set(torch.serialization.get_safe_globals())
            assert safe_load(file)['value'] == 1.5
            assert set(torch.serialization.get_safe_globals()) == inside
    assert set(torch.serialization.get_safe_globals()) == before
    if hasattr(checkpoint_module, 'get_torch_safe_globals'):  # mmengine's fork
        named = [entry[1] for entry in before if isinstance(entry, tuple)]
        assert 'numpy.dtype' not in named
        assert checkpoint_module._safe_torch_load(file)['value'] == 1.5


SAFE_GLOBALS_OF = {entry[1]: entry[0] for entry in SAFE_GLOBALS if isinstance(entry, tuple)}


def test_an_array_gets_its_numbers_once():
    array = SAFE_GLOBALS_OF['numpy._core.multiarray._reconstruct'](np.ndarray, (0,), b'b')
    state = np.arange(4.0).__reduce__()[2]
    array.__setstate__(state)
    with pytest.raises(pickle.UnpicklingError, match='twice'):
        array.__setstate__(state)


def test_no_array_over_somebody_elses_memory():
    frombuffer = SAFE_GLOBALS_OF['numpy._core.numeric._frombuffer']
    data = bytearray(np.arange(2.0).tobytes())
    array = frombuffer(data, np.dtype('f8'), (2,), 'C')
    data[:] = bytes(16)
    np.testing.assert_array_equal(array, [0.0, 1.0])
    with pytest.raises(pickle.UnpicklingError, match='memory of a ndarray'):
        frombuffer(np.arange(2.0), np.dtype('f8'), (2,), 'C')


def test_loading_in_threads_keeps_the_users_list(tmp_path):
    torch.save(dict(a=HistoryBuffer([1.0], [1]), b=np.arange(3)), tmp_path / 'a.pth')
    before = set(map(str, torch.serialization.get_safe_globals()))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: safe_load(tmp_path / 'a.pth'), range(200)))
    assert set(map(str, torch.serialization.get_safe_globals())) == before


def test_haiku_files_by_their_suffix(tmp_path):
    """Weights of DeepMind, a pickle in spite of its name; nothing in one is executed."""
    state = safe_load(DATA / 'F0w8_haiku.npz')['state_dict']
    assert all(torch.is_tensor(value) for value in state.values())
    assert state['NFNet.linear.w'].shape == (384, 10)
    (tmp_path / 'evil.npz').write_bytes(pickle.dumps({'a': Harmful(str(tmp_path / 'harmed'))}))
    with pytest.raises(CheckpointError, match='is refused: it names posix.mkdir'):
        safe_load(tmp_path / 'evil.npz')
    assert not (tmp_path / 'harmed').exists()
