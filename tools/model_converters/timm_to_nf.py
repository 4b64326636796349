"""Convert weights of timm's NormFreeNet models to a checkpoint for the networks of this package.

python tools/model_converters/timm_to_nf.py model.safetensors nf.pth --model nf_resnet50

It also writes ``nf.py``, the config that loads ``nf.pth`` and normalises images as timm does. With
``--config CONFIG`` the checkpoint is for the model of that config, and no config is written.
"""

from nf_plugins.checkpoint.tensors import read_and_say
from nf_plugins.cli.converter import converter
from nf_plugins.models import timm_config
from nf_plugins.models.weight_names import timm_rename


def named_model(name, source):
    """Make the config of a timm model with the number of classes of the source."""
    classes = [len(value) for key, value in source.items() if key.endswith('head.fc.bias')]
    return timm_config(name, *classes[:1])


main = converter('Convert weights of timm.', read_and_say, timm_rename, named_model)

if __name__ == '__main__':
    main()
