"""Convert DeepMind's haiku weights to a checkpoint for the networks of this package.

python tools/model_converters/haiku_to_nf.py F0_haiku.npz f0.pth --config configs/nfnet/...
"""

from nf_plugins.checkpoint.haiku import haiku_weights
from nf_plugins.cli.converter import converter
from nf_plugins.models.weight_names import haiku_rename

main = converter("Convert DeepMind's haiku weights.", haiku_weights, haiku_rename)

if __name__ == '__main__':
    main()
