"""What somebody reads who has not installed or fetched all that a command needs."""

import builtins
import sys

import pytest

from nf_plugins.datasets import Digits
from nf_plugins.errors import UsageError, as_usage_error

from ..tools import run_tool

CASES = {
    'nf-resnet50_8xb32_in1k.py': 'there is no data/imagenet/train and data/imagenet/val: ImageNet',
    'nf-resnet50_1xb128_cifar10': 'there is no data/cifar10/cifar-10-batches-py: CIFAR-10',
}


@pytest.mark.slow
@pytest.mark.parametrize('config', CASES)
def test_training_without_its_data_is_one_line(config, tmp_path, monkeypatch, capsys):
    from mmpretrain.datasets import cifar

    def offline(*args, **kwargs):
        raise OSError('Name or service not known')

    monkeypatch.setattr(cifar, 'download_and_extract_archive', offline)
    monkeypatch.chdir(tmp_path)
    assert run_tool('train', config, '--work-dir', tmp_path / 'work') == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith('error:')]
    assert CASES[config] in line
    assert '--cfg-options train_dataloader.dataset.data_root=FOLDER' in line


@pytest.mark.parametrize('source', ['train', 'val'])
def test_looking_at_data_that_are_not_there(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ['nf-resnet50_8xb32_in1k', '--input', source, '--out-dir', tmp_path / 'spp']
    assert run_tool('spp_analysis', *arguments) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f'error: cannot read the {source} data of') and 'image-net.org' in line


def without(monkeypatch, name):
    real = builtins.__import__

    def refuse(module, *args, **kwargs):
        if module.partition('.')[0] == name:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', refuse)
    monkeypatch.delitem(sys.modules, name, raising=False)


def test_digits_without_scikit_learn(monkeypatch):
    without(monkeypatch, 'sklearn')
    with pytest.raises(ImportError, match='Digits needs scikit-learn: pip install scikit-learn$'):
        Digits('train')


@pytest.mark.parametrize(
    ('module', 'advice'),
    [
        ('pycocotools', 'pip install pycocotools'),
        ('pycocotools.mask', 'pip install pycocotools'),
        ('mmpretrain', 'pip install onedl-mmpretrain torchvision'),
        ('mmcv._ext', 'MMCV_WITH_OPS=1 pip install'),
        ('sklearn.datasets', 'pip install scikit-learn'),
    ],
)
def test_a_missing_module_is_one_line_with_what_to_install(module, advice):
    with pytest.raises(UsageError, match=f"No module named '{module}'; .*{advice}"):
        with as_usage_error('cannot build'):
            raise ModuleNotFoundError(f'No module named {module!r}', name=module)
    with pytest.raises(UsageError, match=r"^cannot build: No module named 'mine'$"):
        with as_usage_error('cannot build'):
            raise ModuleNotFoundError("No module named 'mine'", name='mine')


def test_a_classifier_without_mmpretrain(tmp_path, monkeypatch, capsys):
    import nf_plugins.config as config

    def refuse(name):
        raise ModuleNotFoundError(f'No module named {name!r}', name=name)

    monkeypatch.setattr(config, 'import_module', refuse)
    cfg = config.load_config('nf-resnet_digits')
    with pytest.raises(UsageError, match="No module named 'mmpretrain'; pip install onedl-mmpret"):
        config.build_model(cfg, 'nf-resnet_digits')
