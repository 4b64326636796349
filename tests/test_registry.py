import json
import subprocess
import sys

import pytest
import torch
from mmengine.registry import DATASETS, MODELS

import nf_plugins
from nf_plugins.registry import class_of

from .conftest import ROOT


@pytest.mark.parametrize(
    'name', ['NFResNet', 'PWSResNet', 'ReLUNeck', 'ScaledWS', 'PWS', 'GammaAct']
)
def test_bare_and_prefixed_names(name):
    assert MODELS.get(name) is not None
    assert MODELS.get(f'nf_plugins.{name}') is MODELS.get(name)


def test_dataset():
    assert DATASETS.get('nf_plugins.Digits') is nf_plugins.datasets.Digits


def run(code, cwd=None):
    return subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=False, cwd=cwd
    )


@pytest.mark.versions
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


START = """
import json, runpy, sys
import mmengine.runner
before = set(sys.modules)
import nf_plugins
package = sorted(set(sys.modules) - before)
sys.argv = ['spp_analysis.py', 'configs/nf_resnet/nf-resnet_digits.py', '--out-dir', '{folder}']
try:
    runpy.run_path('tools/spp_analysis.py', run_name='__main__')
except SystemExit as end:
    assert not end.code
print(json.dumps([package, sorted(sys.modules)]))
"""


@pytest.mark.versions
def test_what_is_imported_at_the_start(tmp_path):
    """Beside its own modules the package imports mmcv's layers, and the tool what it uses."""
    result = run(START.format(folder=tmp_path), cwd=ROOT)
    package, tool = json.loads(result.stdout.splitlines()[-1]) if result.stdout else ([], [])
    assert 'nf_plugins.spp' in package, result.stderr
    late = {'filelock', 'matplotlib', 'mmpretrain', 'plotly', 'sklearn', 'timm', 'triton'}
    assert late.isdisjoint(package)
    foreign = [name for name in package if name.partition('.')[0] not in ('nf_plugins', 'mmcv')]
    assert len(foreign) < 60
    assert (tmp_path / 'spp.png').exists()  # the digits are not read: the images are noise
    assert {'imageio', 'pandas', 'plotly', 'sklearn', 'timm'}.isdisjoint(tool)


@pytest.mark.parametrize(
    ('stub', 'message'),
    [
        (
            'sys.modules["mmcv"] = None',
            "mmcv>=2.0.0 (not installed): pip install -U 'onedl-mmcv>=2.0.0'",
        ),
        (
            'import mmcv; mmcv.__version__ = "1.7.0"',
            "mmcv>=2.0.0 (found 1.7.0): pip install -U 'onedl-mmcv>=2.0.0'",
        ),
        (
            'sys.modules["mmcv"] = sys.modules["mmengine"] = None',
            'mmengine>=0.10.0 (not installed), mmcv>=2.0.0 (not installed): '
            "pip install -U 'onedl-mmengine>=0.10.0' 'onedl-mmcv>=2.0.0'",
        ),
        (
            # A user of the original libraries, whose mmcv is lost.
            'sys.modules["mmcv"] = None\n'
            'm.distributions = lambda **k: [1] if k.get("name") == "mmengine" else []',
            "mmcv>=2.0.0 (not installed): pip install -U 'mmcv-lite>=2.0.0'",
        ),
        (
            'import torch; torch.__version__ = "2.5.1+cu124"',
            "torch>=2.6 (found 2.5.1+cu124): pip install -U 'torch>=2.6'",
        ),
    ],
)
@pytest.mark.versions
def test_a_missing_or_old_library_is_one_clear_error(stub, message):
    # The distributions of the forks, whichever are installed; a case can replace them.
    forks = "m.distributions = lambda **k: [1] if k.get('name', '').startswith('onedl-') else []"
    result = run(f'import sys, importlib.metadata as m; {forks}\n{stub}\nimport nf_plugins')
    last = result.stderr.strip().splitlines()[-1]
    version = nf_plugins.__version__
    assert last == f'ImportError: nf_plugins {version} needs {message}', result.stderr


MMCV = ['DropPath', 'ConvWS', 'Swish', 'GELU']  # mmcv itself would not be imported
NAMES = {
    'MODELS': ['NFNet', 'NFResNet', 'PWS', 'ScaledWS', 'ReLUNeck', 'GammaAct', 'NoNorm', *MMCV],
    'DATASETS': ['Digits', 'Shapes'],
    'HOOKS': ['SPPHook'],
    'OPTIM_WRAPPERS': ['AGCOptimWrapper'],
    'OPTIM_WRAPPER_CONSTRUCTORS': ['NFOptimWrapperConstructor'],
}
CLASH = f"""
import warnings
from mmengine import registry
NAMES = {NAMES}
class Theirs:
    pass
for kind, names in NAMES.items():
    for name in names:
        getattr(registry, kind).register_module(name, module=Theirs)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import nf_plugins
told = [str(w.message) for w in caught if 'belongs to another package' in str(w.message)]
for kind, names in NAMES.items():
    for name in names:
        assert getattr(registry, kind).get(name) is Theirs, name
        assert sum(f"type='{{name}}' belongs to" in text for text in told) == 1, told
        if name not in {MMCV}:
            ours = getattr(registry, kind).get('nf_plugins.' + name)
            assert ours not in (None, Theirs), name
assert len(told) == sum(map(len, NAMES.values()))
# What a network takes by default is ours, too.
for kind, conv in dict(NFResNet='ScaledWSConv2d', PWSResNet='PWSConv2d').items():
    net = registry.MODELS.build(dict(type='nf_plugins.' + kind, depth=26 if 'NF' in kind else 18))
    assert any(type(m).__name__ == conv for m in net.modules())
print('done')
"""


@pytest.mark.versions
def test_names_that_another_package_has_taken():
    result = run(CLASH)
    assert result.stdout.splitlines()[-1:] == ['done'], result.stderr


RELOAD = """
import importlib, pkgutil, sys, warnings
warnings.simplefilter('ignore')
import nf_plugins, nf_plugins.cli.runner, nf_plugins.cli.resuming, nf_plugins.cli.converter
from mmengine.registry import MODELS
warnings.simplefilter('error')
names = sorted(n for n in sys.modules if n.partition('.')[0] == 'nf_plugins')
for name in [*names, 'nf_plugins', *reversed(names)]:
    before = sys.modules[name]
    importlib.reload(before)
assert MODELS.get('ScaledWS') is MODELS.get('nf_plugins.ScaledWS')
assert MODELS.get('ScaledWS') is sys.modules['nf_plugins.layers.scaled_ws'].ScaledWSConv2d
importlib.reload(sys.modules['nf_plugins.models.backbones'])
MODELS.build(dict(type='nf_plugins.NFResNet', depth=26))
print(len(names), 'done')
"""


@pytest.mark.versions
def test_every_module_can_be_reloaded():
    result = run(RELOAD)
    assert result.stdout.splitlines()[-1:], result.stderr
    number, word = result.stdout.splitlines()[-1].split()
    assert word == 'done' and int(number) > 40


class Foreign(torch.nn.ReLU):
    pass


@pytest.mark.parametrize(
    ('kind', 'expected'),
    [
        ('ReLU', torch.nn.ReLU),
        ('torch.nn.ReLU', torch.nn.ReLU),
        ('torch.nn.modules.activation.ReLU', torch.nn.ReLU),
        ('mmengine.ReLU', torch.nn.ReLU),
        (torch.nn.ReLU, torch.nn.ReLU),
        ('mmcv.Conv2d', torch.nn.Conv2d),
        ('nf_plugins.ScaledWS', nf_plugins.layers.ScaledWSConv2d),
        ('nf_plugins.layers.ScaledWSConv2d', nf_plugins.layers.ScaledWSConv2d),
        ('Nothing', None),
        ('nowhere.Nothing', None),
        ('torch.nn.functional.relu', None),
        (None, None),
        (3, None),
    ],
)
def test_the_class_that_a_type_means(kind, expected):
    assert class_of(kind) is expected
