"""Weights of timm's NormFreeNet models as a checkpoint for the networks here.

python tools/model_converters/timm_to_nf.py model.safetensors f0.pth --config configs/...
"""

from nf_plugins.checkpoint.convert import timm_rename
from nf_plugins.checkpoint.tensors import read_weights
from nf_plugins.utils.converter import converter

main = converter('Convert weights of timm.', read_weights, timm_rename)

if __name__ == '__main__':
    main()
