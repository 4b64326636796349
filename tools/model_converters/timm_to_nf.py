"""Weights of timm's NormFreeNet models as a checkpoint for the networks here.

python tools/model_converters/timm_to_nf.py model.safetensors nf.pth --model nf_resnet50

also writes ``nf.py``, the config that loads ``nf.pth`` and normalises images as timm does; with
``--config CONFIG`` it fills the model of that one.
"""

from nf_plugins.checkpoint.tensors import read_and_say
from nf_plugins.cli.converter import converter
from nf_plugins.models import timm_config
from nf_plugins.models.weight_names import timm_rename


def named_model(name, source):
    """The config of a model of timm with as many classes as the source has."""
    classes = [len(value) for key, value in source.items() if key.endswith('head.fc.bias')]
    return timm_config(name, *classes[:1])


main = converter('Convert weights of timm.', read_and_say, timm_rename, named_model)

if __name__ == '__main__':
    main()
