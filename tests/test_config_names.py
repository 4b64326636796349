"""Our configs under their names, in mmengine and in mmpretrain."""

import os
import subprocess
import sys

import pytest
import yaml
from mmengine.config import Config

from nf_plugins import config_names, config_path
from nf_plugins.config import find_config, load_config
from nf_plugins.errors import UsageError

from .conftest import ROOT

CONFIGS = ROOT / 'configs'
DIGITS = CONFIGS / 'nf_resnet/nf-resnet_digits.py'


@pytest.mark.parametrize(
    'name',
    [
        'nf-resnet_digits.py',
        'nf-resnet_digits',
        'nf_resnet/nf-resnet_digits',
        'configs/nf_resnet/nf-resnet_digits.py',
        'nfplugins::nf_resnet/nf-resnet_digits.py',
        'nf_plugins::nf_resnet/nf-resnet_digits',
        'nfplugins::nf-resnet_digits',
    ],
)
def test_a_name_with_or_without_its_folder_and_suffix(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_path(name) == find_config(name) == str(DIGITS)


@pytest.mark.parametrize('name', ['', 'nf-resnet', 'mmdet::nf-resnet_digits.py', '../x', 'nf-*',
                                  'nf-resnet51_8xb32_in1k', '::', 'resnet_digits.py/'])  # fmt: skip
def test_other_names_are_refused_and_close_ones_told(name):
    with pytest.raises(FileNotFoundError) as error:
        config_path(name)
    assert 'no config of nf_plugins is named' in str(error.value)
    if 'resnet51' in name:
        told = str(error.value).partition('close names: ')[2]
        assert told.startswith('nf-resnet50_8xb32_in1k, ') and '.py' not in told
    with pytest.raises(UsageError, match='no config at'):
        find_config(name)


def test_a_file_of_the_users_own_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'nf-resnet_digits.py').write_text('')
    assert find_config('nf-resnet_digits') == 'nf-resnet_digits.py'


@pytest.mark.parametrize('prefix', ['nfplugins', 'nf_plugins'])
@pytest.mark.parametrize('name', ['nf_resnet/nf-resnet_digits.py', 'nf-resnet_digits'])
def test_inherit_by_name(prefix, name, tmp_path):
    child = tmp_path / 'child.py'
    child.write_text(
        f"_base_ = '{prefix}::{name}'\n"
        'model = dict(backbone=dict(depth=50))\n'
        'train_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))\n'
    )
    expected = Config.fromfile(DIGITS).to_dict()
    for cfg in (Config.fromfile(child), load_config(str(child))):
        found = cfg.to_dict()
        assert '_scope_' not in str(found)  # its parts are of the library in default_scope
        assert found['model']['backbone'].pop('depth') == 50
        dataset = found['train_dataloader']['dataset']
        assert dataset.pop('pipeline') == expected['test_pipeline']
        whole = Config.fromfile(DIGITS).to_dict()
        del whole['model']['backbone']['depth'], whole['train_dataloader']['dataset']['pipeline']
        assert found == whole


def test_names_of_other_packages_are_left_to_mmengine(tmp_path):
    pytest.importorskip('mmdet')
    child = tmp_path / 'child.py'
    child.write_text("_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\n")
    assert Config.fromfile(child).model._scope_ == 'mmdet'


INDEXED = {
    model['Name']: model
    for family in config_names.FAMILIES
    for model in yaml.safe_load((CONFIGS / family / 'metafile.yml').read_text())['Models']
}


def test_every_metafile_of_classifiers_is_registered():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    folders = {path.split('/')[1] for path in index}
    assert folders - {'downstream'} == set(config_names.FAMILIES)


@pytest.mark.slow
def test_mmpretrain_lists_and_builds_our_models():
    import mmpretrain
    from mmpretrain.apis.model import ModelHub

    ours = str(CONFIGS)
    listed = {
        name
        for name in mmpretrain.list_models()
        if str(ModelHub._models_dict[name].filepath).startswith(ours)
    }
    assert listed == set(INDEXED)
    assert len(INDEXED) == sum(len(list((CONFIGS / f).glob('*.py'))) for f in config_names.FAMILIES)
    tasks = mmpretrain.list_models('nf*', task='Image Classification')
    assert set(tasks) == {name for name in listed if name.startswith('nf')}
    options = dict(neck=dict(in_channels=128), head=dict(in_channels=128))
    small = dict(base_channels=4)
    model = mmpretrain.get_model('nf-resnet_digits', backbone=small, **options)
    assert type(model.backbone).__name__ == 'NFResNet'
    assert ModelHub.get('nf-resnet_digits').metadata.parameters == 882114
    before = dict(ModelHub._models_dict)
    config_names.install()  # as a reloaded module does
    config_names.register_models(ModelHub)
    assert ModelHub._models_dict == before


@pytest.mark.parametrize('order', [('mmpretrain', 'nf_plugins'), ('nf_plugins', 'mmpretrain')])
@pytest.mark.versions
def test_whatever_is_imported_first(order):
    code = f"""
import sys, {order[0]}
assert ('mmpretrain' in sys.modules) == ('{order[0]}' == 'mmpretrain')
import {order[1]}, mmpretrain
print(len(mmpretrain.list_models('nf-resnet')), [f for f in sys.meta_path if 'Hub' in str(type(f))])
"""
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True,
                            text=True, check=False, cwd=ROOT)  # fmt: skip
    count = len(list((CONFIGS / 'nf_resnet').glob('*.py')))
    assert result.stdout.splitlines()[-1:] == [f'{count} []'], result.stderr


INSTALLED = """
from mmengine.hub import get_config
import nf_plugins
assert nf_plugins.__file__.startswith(FOLDER), nf_plugins.__file__
from mmengine.config import Config
for prefix in ('nfplugins', 'nf_plugins'):
    cfg = get_config(prefix + '::nf_resnet/nf-resnet_digits.py')
    assert cfg.model.backbone.depth == 26
open('child.py', 'w').write('''
from mmengine.config import read_base
with read_base():
    from nf_plugins.configs.nf_resnet.nf_resnet_digits import *
model['backbone']['depth'] = 50
''')
child = Config.fromfile('child.py')
child.dump('dumped.py')
dumped, ours = Config.fromfile('dumped.py').to_dict(), cfg.to_dict()
assert dumped['model']['backbone'].pop('depth') == 50
del ours['model']['backbone']['depth']
assert dumped == ours
from pathlib import Path
names = {p.name for p in Path(FOLDER, 'nf_plugins/configs').rglob('*.py')}
assert len(names) == COUNT and all(name[:-3].isidentifier() for name in names)
print('done')
"""


@pytest.mark.slow
def test_names_in_an_installed_package(tmp_path):
    library = tmp_path / 'lib'
    setup = [sys.executable, 'setup.py', '-q', 'build_py', '--build-lib', str(library)]
    subprocess.run(setup, cwd=ROOT, check=True, capture_output=True)
    assert (library / 'nf_plugins/py.typed').exists()
    # What users call is there; benchmarks, oracles and what draws the docs are not.
    assert os.listdir(library) == ['nf_plugins']
    tools = {p.stem for p in (library / 'nf_plugins/.mim/tools').rglob('*.py')}
    assert {'train', 'test', 'spp_analysis', 'spp_video', 'fold'} <= tools
    folders = [ROOT / name for name in ('benchmarks', 'tests', 'docs')]
    foreign = {p.stem for folder in folders for p in folder.rglob('*.py')}
    assert not tools & (foreign - {'__init__'})
    count = sum('_base_' not in path.parts for path in CONFIGS.rglob('*.py'))
    code = f'import sys; FOLDER, COUNT = {str(library)!r}, {count}; sys.path.insert(0, FOLDER)'
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', code + INSTALLED], check=False,
                            capture_output=True, text=True, cwd=tmp_path)  # fmt: skip
    assert result.stdout.splitlines()[-1:] == ['done'], result.stderr
