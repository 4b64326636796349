"""What the tests of other libraries' models share."""

import yaml
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from ..conftest import ROOT

FOLDER = ROOT / 'configs/downstream'
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def load(name):
    cfg = Config.fromfile(FOLDER / name)
    init_default_scope(cfg.default_scope)
    return cfg


def norms(model):
    return [name for name, module in model.named_modules() if isinstance(module, NORMS)]


def decay(model, wrapper):
    """Name of each parameter that is not frozen -> its weight decay."""
    settings = {
        id(p): group['weight_decay'] for group in wrapper.param_groups for p in group['params']
    }
    return {name: settings[id(p)] for name, p in model.named_parameters() if p.requires_grad}


def listed_parameters(name):
    """The parameters of a config's model as the metafile has them."""
    models = yaml.safe_load((FOLDER / 'metafile.yml').read_text())['Models']
    (model,) = [m for m in models if m['Config'] == f'configs/downstream/{name}']
    return model['Metadata']['Parameters']
