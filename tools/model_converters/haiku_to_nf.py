"""DeepMind's haiku weights as a checkpoint for the networks here.

python tools/model_converters/haiku_to_nf.py F0_haiku.npz f0.pth --config configs/nfnet/...
"""

import numpy as np
import torch

from nf_plugins.checkpoint.convert import haiku_rename
from nf_plugins.checkpoint.haiku import read_haiku
from nf_plugins.utils.converter import converter


def read(path):
    arrays = read_haiku(path).items()
    return {name: torch.from_numpy(np.array(value, dtype=np.float32)) for name, value in arrays}


main = converter("Convert DeepMind's haiku weights.", read, haiku_rename)

if __name__ == '__main__':
    main()
