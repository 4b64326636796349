import subprocess
import sys

import pytest
from mmengine.registry import DATASETS, MODELS

import nf_plugins


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


def test_the_package_does_not_import_mmpretrain_or_plotting():
    result = run(
        'import sys, nf_plugins; print([m for m in ("mmpretrain", "matplotlib", "sklearn") '
        'if m in sys.modules])'
    )
    assert result.stdout.splitlines()[-1] == '[]', result.stderr


@pytest.mark.parametrize(
    ('stub', 'message'),
    [
        ('sys.modules["mmcv"] = None', 'needs mmcv>=2.0.0'),
        ('import mmcv; mmcv.__version__ = "1.7.0"', 'needs mmcv>=2.0.0.*found 1.7.0'),
        ('import mmengine; mmengine.__version__ = "0.9.0"', 'needs mmengine>=0.10.0.*found 0.9.0'),
    ],
)
def test_a_missing_or_old_library_is_one_clear_error(stub, message):
    import re

    result = run(f'import sys; {stub}\nimport nf_plugins')
    last = result.stderr.strip().splitlines()[-1]
    assert re.match(f'ImportError: nf_plugins .* {message}', last), result.stderr
    assert "pip install 'nfplugins[mm]'" in last
