"""Casts of weights: checked against numpy's numbers, and against Fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from nf_plugins.checkpoint.convert import convert
from nf_plugins.checkpoint.exact import as_tensor, cast_exactly

F32, F64, I64 = torch.float32, torch.float64, torch.int64
KEPT = [
    ([0.1, -1e30, 1e-44, math.inf, math.nan, 0.0], F64, F32),
    ([3.4028235677973362e38], F64, F32),  # rounds to the largest
    ([2.0**24, -(2.0**60), 3.0], F64, I64),
    ([0, -(2**24), 2**40, 2**24 + 2], I64, F32),
    ([0, 255], torch.uint8, F32),
    ([65535], torch.uint16, F32),
    ([2**62], torch.uint64, F32),
    ([1.5, -0.0, 65504.0], torch.float16, F32),
    ([1e38], torch.bfloat16, F32),
    ([448.0], torch.float8_e4m3fn, F32),
    ([7], torch.int32, I64),
    ([1.0, 0.1], F32, torch.float16),
]
CHANGED = [
    ([1.0, 1e300], F64, F32, r'1e\+300 does not fit float32'),
    ([3.41e38], F64, F32, 'does not fit'),
    ([-1e39], F64, F32, 'does not fit'),
    ([1e-46], F64, F32, '1e-46 does not fit'),
    ([70000.0], F32, torch.float16, 'does not fit float16'),
    ([1e-9], F32, torch.float16, 'does not fit'),
    ([2**24 + 1], I64, F32, '16777217 does not fit float32'),
    ([2**63 - 1], I64, F32, 'does not fit'),
    ([2**31 - 1], torch.int32, F32, 'does not fit'),
    ([2**53 + 1], I64, F64, 'does not fit'),
    ([2**32], I64, torch.int32, 'does not fit'),
    ([-1], I64, torch.uint8, 'does not fit'),
    ([0.5], F32, I64, '0.5 does not fit int64'),
    ([math.nan], F32, I64, 'nan does not fit'),
    ([math.inf], F32, I64, 'inf does not fit'),
    ([1e300], F64, I64, 'does not fit'),
    ([True], torch.bool, F32, 'bool, not float32'),
    ([1.0], F32, torch.bool, 'float32, not bool'),
    ([1], I64, torch.bool, 'int64, not bool'),
    ([1 + 2j], torch.complex64, F32, 'complex64, not float32'),
    ([1 + 0j], torch.complex128, F64, 'complex128, not float64'),
]


@pytest.mark.parametrize(('values', 'source', 'target'), KEPT)
def test_what_is_kept(values, source, target):
    value = torch.tensor(values, dtype=source)
    cast = cast_exactly(value, target)
    assert cast.dtype == target
    assert torch.equal(cast.double(), value.to(target).double()) or value.isnan().any()
    for ours, theirs in zip(cast.tolist(), value.tolist()):
        if isinstance(theirs, int) and not isinstance(ours, bool):
            assert Fraction(ours) == theirs
        elif math.isfinite(theirs):
            assert ours == pytest.approx(theirs, rel=2e-3)
        else:
            assert str(ours) == str(theirs)


@pytest.mark.parametrize(('values', 'source', 'target', 'message'), CHANGED)
def test_what_would_change(values, source, target, message):
    with pytest.raises(ValueError, match=message):
        cast_exactly(torch.tensor(values, dtype=source), target)


def test_as_numpy_rounds():
    rng = np.random.RandomState(0)
    values = rng.randn(2000) * 10.0 ** rng.uniform(-60, 60, 2000)
    with np.errstate(all='ignore'):
        cast = values.astype(np.float32)
    kept = np.isfinite(cast) & (cast != 0)
    assert 300 < kept.sum() < 1700
    for value, expected, fits in zip(values, cast, kept):
        tensor = torch.tensor([value], dtype=F64)
        if fits:
            assert cast_exactly(tensor, F32).item() == expected
        else:
            with pytest.raises(ValueError, match='does not fit'):
                cast_exactly(tensor, F32)


NO_NUMBERS = {
    'meta': (lambda: torch.ones(2, 3, device='meta'), 'a meta tensor, which has no numbers'),
    'sparse': (lambda: torch.ones(2, 3).to_sparse(), 'no dense tensor'),
    'csr': (lambda: torch.eye(3)[:2].to_sparse_csr(), 'no dense tensor'),
    'quantized': (
        lambda: torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8),
        'quantized',
    ),
    'nested': (
        lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(2)]),
        'no dense tensor',
    ),
    'bool': (lambda: torch.ones(2, 3, dtype=torch.bool), 'bool, not float32'),
    'complex': (lambda: torch.ones(2, 3, dtype=torch.complex64), 'complex64, not float32'),
    'overflow': (lambda: torch.full((2, 3), 1e300, dtype=F64), 'does not fit float32'),
    'counts': (lambda: torch.full((2, 3), 2**24 + 1), 'does not fit float32'),
    'int': (lambda: 3, 'no array of numbers but a int'),
    'none': (lambda: None, 'no array of numbers but a NoneType'),
    'text': (lambda: 'abc', 'no array of numbers but a str'),
}


@pytest.mark.filterwarnings('ignore:The PyTorch API of nested tensors')
@pytest.mark.filterwarnings('ignore:Sparse')
@pytest.mark.parametrize('kind', NO_NUMBERS)
def test_a_conversion_refuses_them(kind):
    make, message = NO_NUMBERS[kind]
    source = dict(weight=make(), bias=torch.zeros(2))
    with pytest.raises(ValueError, match=f'weight.*{message}'):
        convert(source, nn.Linear(3, 2), lambda name, value: (name, value))


def test_a_conversion_keeps_the_rest():
    source = dict(weight=torch.rand(2, 3, dtype=F64), bias=torch.tensor([1, 2]))
    state = convert(source, nn.Linear(3, 2), lambda name, value: (name, value))
    assert torch.equal(state['weight'], source['weight'].float())
    assert state['bias'].tolist() == [1.0, 2.0]


@pytest.mark.parametrize('kind', ['<f4', '>f4', '>f8', '<f2', 'u1', '>i8', 'u2'])
def test_arrays_become_tensors(kind):
    array = np.arange(6).reshape(2, 3).astype(kind).T
    tensor = as_tensor(array)
    assert tensor.tolist() == array.astype(float).tolist()
    assert str(tensor.dtype) == f'torch.{array.dtype.newbyteorder("=").name}'


def test_bfloat16_of_numpy():
    array = np.array([1.0, 3.1415], dtype=pytest.importorskip('ml_dtypes').bfloat16)
    tensor = as_tensor(array)
    assert tensor.dtype == torch.bfloat16
    assert tensor.tolist() == array.astype(float).tolist()
