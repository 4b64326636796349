"""The command line that all converters share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping

import torch
from mmengine.logging import MMLogger
from torch import Tensor, nn

from nf_plugins.checkpoint.convert import Rename, convert, encode_converted
from nf_plugins.checkpoint.state_dict import split_weights_key

from .cli import ArgumentParser, add_weights_key, command_line, complaint, with_weights_key
from .files import atomic_write, check_writable_dir
from .runner import build_model, load_config


def converter(
    description: str,
    read: Callable[[str, str | None], tuple[Mapping[str, Tensor], str]],
    make_rename: Callable[[nn.Module], Rename],
) -> Callable[[], None]:
    """The ``main`` of a converter: ``SRC DST --config CONFIG``.

    Args:
        description: What it converts.
        read: Reads the source file; takes it and the key of its weights, and returns them
            and a line that says which of several they are.
        make_rename: The renaming for a model.
    """

    @command_line
    def main() -> None:
        parser = ArgumentParser(description=description)
        parser.add_argument('src', help='file of the foreign weights')
        parser.add_argument('dst', help='checkpoint to write')
        parser.add_argument('--config', required=True, help='config of the model to fill')
        add_weights_key(parser)
        args = parser.parse_args()
        MMLogger.get_instance('mmengine').setLevel('ERROR')
        with complaint(f'cannot write {args.dst}'):
            check_writable_dir(os.path.dirname(os.path.abspath(args.dst)))
        with complaint(f'cannot read {args.src}'):
            path, key = split_weights_key(with_weights_key(args.src, args.weights_key))
            source, note = read(path, key)
        model = build_model(load_config(args.config), args.config)
        with complaint(f'cannot convert {args.src} for {args.config}'), torch.no_grad():
            state = convert(source, model, make_rename(model))
        with complaint(f'cannot write {args.dst}'):
            atomic_write(args.dst, encode_converted(state, args.dst, path))
        print(f'{len(source)} arrays of {path} -> {args.dst}')
        if note:
            print(note, file=sys.stderr)

    return main
