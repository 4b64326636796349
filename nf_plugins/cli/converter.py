"""Shared command line of the converters."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import torch
from mmengine.config import Config
from torch import Tensor, nn

from nf_plugins.checkpoint.convert import Rename, convert, encode_converted
from nf_plugins.checkpoint.state_dict import split_weights_key
from nf_plugins.cli.arguments import ArgumentParser, add_weights_key, with_weights_key
from nf_plugins.cli.command_line import command_line, quiet
from nf_plugins.config import build_model, load_config
from nf_plugins.errors import UsageError, as_usage_error, say
from nf_plugins.utils.files import atomic_write_all, check_writable_dir


def converter(
    description: str,
    read: Callable[[str, str | None], tuple[Mapping[str, Tensor], str]],
    make_rename: Callable[[nn.Module], Rename],
    named_model: Callable[[str, Mapping[str, Tensor]], dict] | None = None,
) -> Callable[[], None]:
    """Make the ``main`` of a converter: ``SRC DST --config CONFIG``, or ``--model NAME``.

    Args:
        description: A sentence about what it converts.
        read: Function that reads the source file. It takes the path and the key of the weights. It
            returns the weights and a line that says which weights of the file these are.
        make_rename: Function that returns the renaming for a model.
        named_model: Function that makes the config of a model from its name and the source. The
            config is then written beside the checkpoint.
    """

    @command_line
    def main() -> None:
        parser = ArgumentParser(description=description)
        parser.add_argument('src', help='file with weights of another implementation')
        parser.add_argument('dst', help='checkpoint to write')
        text = 'config of the model to fill'
        if named_model is None:
            parser.add_argument('--config', required=True, help=text)
        else:
            target = parser.add_mutually_exclusive_group(required=True)
            target.add_argument('--config', help=text)
            target.add_argument(
                '--model',
                help='name of the model to fill; its config is written beside DST, with .py',
            )
        add_weights_key(parser)
        args = parser.parse_args()
        quiet()
        with as_usage_error(f'cannot write {args.dst}'):
            check_writable_dir(os.path.dirname(os.path.abspath(args.dst)))
        with as_usage_error(f'cannot read {args.src}'):
            path, key = split_weights_key(with_weights_key(args.src, args.weights_key))
            source, note = read(path, key)
        name = args.config or getattr(args, 'model', '')
        files: dict[str | os.PathLike, bytes | str | None] = {}
        if named_model is None or args.config:
            cfg = load_config(args.config)
        else:
            with as_usage_error('bad arguments'):
                config = os.path.splitext(args.dst)[0] + '.py'
                if config == args.dst:
                    raise UsageError(f'{args.dst} would be overwritten by the config')
                cfg = Config(dict(model=named_model(name, source)))
            files[config] = cfg.pretty_text
        model = build_model(cfg, name)
        with as_usage_error(f'cannot convert {args.src} for {name}'), torch.no_grad():
            state = convert(source, model, make_rename(model))
        with as_usage_error(f'cannot write {args.dst}'):
            atomic_write_all({args.dst: encode_converted(state, args.dst, path), **files})
        say(f'{len(source)} arrays of {path} ->', args.dst, *files)
        if note:
            say(note, error=True)

    return main
