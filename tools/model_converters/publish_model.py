"""Make a checkpoint to publish. It contains the weights and ``meta``, and its name has its hash.

python tools/model_converters/publish_model.py work_dirs/nf/epoch_20.pth nf.pth

It writes ``nf-<sha8>.pth``; sha8 are the first eight digits of the file's SHA-256. The states of
the optimizer and of the hooks are left out. If there are several weights in the checkpoint, only
the chosen ones are published.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from pathlib import Path

from nf_plugins.checkpoint import find_weights, safe_load
from nf_plugins.checkpoint.exact import check_numbers
from nf_plugins.checkpoint.state_dict import split_weights_key
from nf_plugins.checkpoint.tensors import encode_weights
from nf_plugins.cli.arguments import ArgumentParser, add_weights_key, with_weights_key
from nf_plugins.cli.command_line import command_line
from nf_plugins.errors import UsageError, as_usage_error, say, short
from nf_plugins.utils.files import atomic_write, check_writable_dir

SUFFIXES = ('.pth', '.safetensors')


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description='Make a checkpoint to publish.')
    parser.add_argument('src', help='checkpoint')
    parser.add_argument('dst', help=f'file to write ({", ".join(SUFFIXES)}); its name gets -<sha8>')
    add_weights_key(parser)
    parser.add_argument(
        '--no-ema',
        dest='weights_key',
        action='store_const',
        const='ema_state_dict',
        help='if mmengine has saved averaged weights, take the weights before averaging',
    )
    return parser.parse_args()


@command_line
def main() -> None:
    args = parse_args()
    dst = Path(args.dst)
    if dst.suffix not in SUFFIXES:
        raise UsageError(f'DST must end in {" or ".join(SUFFIXES)}, got {args.dst!r}')
    with as_usage_error(f'cannot write {dst}'):
        check_writable_dir(dst.absolute().parent)
    with as_usage_error(f'cannot publish {args.src}'):
        path, key = split_weights_key(with_weights_key(args.src, args.weights_key))
        checkpoint = safe_load(path)
        state, note = find_weights(checkpoint, path, key)
        for name, value in state.items():
            try:
                check_numbers(value)
            except ValueError as error:
                raise UsageError(f'cannot publish {path}: {name} is {error}') from None
        # A view would be saved with the whole memory of its storage.
        state = {name: value.detach().clone().contiguous() for name, value in state.items()}
        meta = checkpoint.get('meta')
        content = encode_weights(state, dst, meta if isinstance(meta, dict) else {})
    digest = hashlib.sha256(content).hexdigest()[:8]
    target = dst.with_name(f'{dst.stem}-{digest}{dst.suffix}')
    with as_usage_error(f'cannot write {target}'):
        atomic_write(target, content)
    others = [name for name in checkpoint if name not in ('meta', 'state_dict', *state)]
    dropped = [name[:50] if isinstance(name, str) else short(name) for name in others]
    if note:
        say(note)
    if dropped:
        say('left out:', ', '.join(dropped))
    say(f'written: {target} ({len(state)} arrays, {os.path.getsize(target) / 1e6:.1f} MB)')


if __name__ == '__main__':
    main()
