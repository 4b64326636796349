"""The command line that all converters share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import torch
from mmengine.logging import MMLogger
from torch import Tensor, nn

from nf_plugins.checkpoint.convert import Rename, convert, encode_converted

from .cli import ArgumentParser, command_line, complaint
from .files import atomic_write, check_writable_dir
from .runner import build_model, load_config


def converter(
    description: str,
    read: Callable[[str], Mapping[str, Tensor]],
    make_rename: Callable[[nn.Module], Rename],
) -> Callable[[], None]:
    """The ``main`` of a converter: ``SRC DST --config CONFIG``.

    Args:
        description: What it converts.
        read: Reads the source file.
        make_rename: The renaming for a model.
    """

    @command_line
    def main() -> None:
        parser = ArgumentParser(description=description)
        parser.add_argument('src', help='file of the foreign weights')
        parser.add_argument('dst', help='checkpoint to write')
        parser.add_argument('--config', required=True, help='config of the model to fill')
        args = parser.parse_args()
        MMLogger.get_instance('mmengine').setLevel('ERROR')
        with complaint(f'cannot write {args.dst}'):
            check_writable_dir(os.path.dirname(os.path.abspath(args.dst)))
        with complaint(f'cannot read {args.src}'):
            source = read(args.src)
        model = build_model(load_config(args.config), args.config)
        with complaint(f'cannot convert {args.src} for {args.config}'), torch.no_grad():
            state = convert(source, model, make_rename(model))
        with complaint(f'cannot write {args.dst}'):
            atomic_write(args.dst, encode_converted(state, args.dst, args.src))
        print(f'{len(source)} arrays of {args.src} -> {args.dst}')

    return main
