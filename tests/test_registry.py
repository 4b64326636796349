import subprocess
import sys

import pytest
from mmengine.registry import DATASETS, MODELS

import nf_plugins

MM = "install it with `pip install 'nfplugins[mm]'` or follow requirements/mminstall.txt"


@pytest.mark.parametrize(
    'name', ['NFResNet', 'PWSResNet', 'ReLUNeck', 'ScaledWS', 'PWS', 'GammaAct']
)
def test_bare_and_prefixed_names(name):
    assert MODELS.get(name) is not None
    assert MODELS.get(f'nf_plugins.{name}') is MODELS.get(name)


def test_dataset():
    assert DATASETS.get('nf_plugins.Digits') is nf_plugins.datasets.Digits


def run(code):
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)


@pytest.mark.stacks
def test_prefixed_names_need_no_import():
    code = """
import sys
from mmengine.registry import MODELS
conv = MODELS.build(dict(type='nf_plugins.ScaledWS', in_channels=3, out_channels=4, kernel_size=3))
assert 'mmpretrain' not in sys.modules
print(type(conv).__name__)
"""
    result = run(code)
    assert result.stdout.splitlines()[-1] == 'ScaledWSConv2d', result.stderr


@pytest.mark.stacks
def test_the_package_does_not_import_mmpretrain_or_plotting():
    result = run(
        'import sys, nf_plugins; print([m for m in ("mmpretrain", "matplotlib", "sklearn") '
        'if m in sys.modules])'
    )
    assert result.stdout.splitlines()[-1] == '[]', result.stderr


@pytest.mark.parametrize(
    ('stub', 'message'),
    [
        ('sys.modules["mmcv"] = None', f'needs mmcv>=2.0.0: {MM}; it is not installed'),
        ('import mmcv; mmcv.__version__ = "1.7.0"', f'needs mmcv>=2.0.0: {MM}; found 1.7.0'),
        (
            'import mmengine; mmengine.__version__ = "0.9.0"',
            f'needs mmengine>=0.10.0: {MM}; found 0.9.0',
        ),
        (
            'import torch; torch.__version__ = "2.5.1+cu124"',
            "needs torch>=2.6: install it with `pip install 'torch>=2.6'`; found 2.5.1+cu124",
        ),
    ],
)
@pytest.mark.stacks
def test_a_missing_or_old_library_is_one_clear_error(stub, message):
    result = run(f'import sys; {stub}\nimport nf_plugins')
    last = result.stderr.strip().splitlines()[-1]
    assert last == f'ImportError: nf_plugins {nf_plugins.__version__} {message}', result.stderr
