"""Convert DeepMind's haiku weights to a checkpoint for the networks of this package.

python tools/model_converters/haiku_to_nf.py F0_haiku.npz f0.pth --config configs/nfnet/...
"""

from nf_plugins.checkpoint.exact import as_tensor
from nf_plugins.checkpoint.haiku import read_haiku
from nf_plugins.cli.converter import converter
from nf_plugins.errors import CheckpointError
from nf_plugins.models.weight_names import haiku_rename


def read(path, key):
    """The arrays of a file, or those in its dict ``key``; of a file with ``params`` those."""
    arrays, note = read_haiku(path), ''
    if key is None and any(name.startswith('params.') for name in arrays):
        key = 'params'
        others = sorted({name.split('.')[0] for name in arrays} - {key})
        if others:
            note = f'{path}: the weights of {key!r} are taken, not those of {str(others)[1:-1]}'
    if key is not None:
        start = f'{key}.'
        arrays = {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
        if not arrays:
            raise CheckpointError(f'{path} holds no weights under {key!r}')
    return {name: as_tensor(value) for name, value in arrays.items()}, note


main = converter("Convert DeepMind's haiku weights.", read, haiku_rename)

if __name__ == '__main__':
    main()
