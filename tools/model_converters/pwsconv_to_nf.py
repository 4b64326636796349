"""Convert checkpoints of the PWSConv repository to checkpoints for PWSResNet.

python tools/model_converters/pwsconv_to_nf.py epoch_100.pth pws.pth --config configs/...
"""

from nf_plugins.checkpoint.tensors import read_and_say
from nf_plugins.cli.converter import converter
from nf_plugins.models.weight_names import pwsconv_rename

main = converter('Convert checkpoints of the PWSConv repository.', read_and_say, pwsconv_rename)

if __name__ == '__main__':
    main()
