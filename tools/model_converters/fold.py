"""Fold a trained network into plain convolutions.

python tools/model_converters/fold.py CONFIG CHECKPOINT folded.pth

It writes ``folded.pth`` and, in the same folder, ``folded.py``, the config that loads it. If CONFIG
contains data loaders, so does ``folded.py``. Then ``folded_model.py`` contains the model only, for
``_base_``.
"""

from __future__ import annotations

import argparse
import io
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from nf_plugins.checkpoint import check_match
from nf_plugins.checkpoint.convert import encode_converted
from nf_plugins.checkpoint.fit import read_checkpoint, weights_for
from nf_plugins.checkpoint.state_dict import split_weights_key
from nf_plugins.cli.arguments import ArgumentParser, add_weights_key, positive, with_weights_key
from nf_plugins.cli.command_line import command_line, quiet
from nf_plugins.cli.model_config import has_data, importing_config, model_config
from nf_plugins.config import build_model, load_config
from nf_plugins.errors import UsageError, as_usage_error, say
from nf_plugins.layers import StandardizedConv2d, fold
from nf_plugins.models import PWSResNet
from nf_plugins.models.backbones.nf_backbone import NFBackbone
from nf_plugins.registry import MODELS
from nf_plugins.spp.inputs import config_input_size, image_channels
from nf_plugins.utils.files import atomic_write_all, check_writable_dir


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description='Fold a network into plain convolutions.')
    parser.add_argument('config', help='config of the trained model')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('dst', help='checkpoint to write; the config beside it gets .py')
    parser.add_argument('--onnx', help='also export the folded network (without preprocessing)')
    parser.add_argument('--input-size', type=positive, help='side for --onnx (default: as trained)')
    parser.add_argument(
        '--dynamic-size',
        action='store_true',
        help='any height and width for --onnx',
    )
    add_weights_key(parser)
    return parser.parse_args()


def folded_config(cfg: Any) -> Any:
    """Make the config of the folded model: deployed backbones, and plain convolutions elsewhere."""
    if isinstance(cfg, (list, tuple)):
        return type(cfg)(folded_config(value) for value in cfg)
    if not isinstance(cfg, dict):
        return cfg
    folded = {name: folded_config(value) for name, value in cfg.items()}
    kind = kind_of(cfg)
    if issubclass(kind, NFBackbone):
        folded['deploy'] = True
    elif issubclass(kind, PWSResNet):
        folded['conv_cfg'] = dict(type='Conv2d')
    elif issubclass(kind_of(cfg.get('conv_cfg')), StandardizedConv2d):
        folded['conv_cfg'] = dict(type='Conv2d')
    return folded


def kind_of(cfg: Any) -> type:
    """Return the class that a config builds; ``object`` if it is none of this package."""
    kind = cfg.get('type') if isinstance(cfg, dict) else None
    if isinstance(kind, str):
        kind = MODELS.module_dict.get(kind.removeprefix('nf_plugins.'))
    return kind if isinstance(kind, type) else object


def has_classes(meta: Any) -> bool:
    """Whether the ``meta`` of a checkpoint has the names of the classes, which inferencers show."""
    return isinstance(meta, dict) and isinstance(meta.get('dataset_meta'), dict)


@command_line
def main() -> None:
    args = parse_args()
    quiet()
    dst = Path(args.dst)
    if not dst.name or dst.is_dir():
        raise UsageError(f'{args.dst!r} is no name of a file to write')
    if dst.suffix == '.py':
        raise UsageError(f'{dst} would be overwritten by the config: name it {dst.stem}.pth')
    cfg = load_config(args.config)
    for path in filter(None, (dst, args.onnx)):
        with as_usage_error(f'cannot write {path}'):
            check_writable_dir(os.path.dirname(os.path.abspath(path)))
    model = build_model(cfg, args.config)
    with as_usage_error(f'cannot load the checkpoint {args.checkpoint}'):
        path, key = split_weights_key(with_weights_key(args.checkpoint, args.weights_key))
        checkpoint = read_checkpoint(path)
        state, note = weights_for(model, checkpoint, path, key)
        check_match(state, model, path)
        model.load_state_dict(state, strict=False)
    with as_usage_error(f'cannot fold the model of {args.config}'):
        fold(model)
    model.eval()

    cfg.model = folded_config(cfg.model)
    files = {dst.with_suffix('.py'): model_config(cfg).pretty_text}
    if has_data(cfg):
        files[dst.with_name(f'{dst.stem}_model.py')] = files[dst.with_suffix('.py')]
        files[dst.with_suffix('.py')] = importing_config(cfg).pretty_text
    with as_usage_error(f'cannot build the folded model of {args.config}'):
        check_match(model.state_dict(), build_model(cfg, args.config), dst)
    if args.onnx:
        with as_usage_error('cannot export to ONNX'):
            size = args.input_size or config_input_size(cfg)[0]
            files[Path(args.onnx)], error = export(model, size, args.dynamic_size)
            sizes = 'any size' if args.dynamic_size else f'{size}x{size}'
            print(f'ONNX: images of {sizes}, any batch size; error in onnxruntime: {error:.1e}')
    with as_usage_error(f'cannot write {dst}'):
        meta = checkpoint.get('meta')
        kept = dict(dataset_meta=meta['dataset_meta']) if has_classes(meta) else {}
        files = {dst: encode_converted(model.state_dict(), dst, path, **kept), **files}
        atomic_write_all(files)
    if note:
        say(note, error=True)
    say('written:', *files)


class Scores(torch.nn.Module):
    """Classifier from normalised images to scores."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.head.fc(self.model.extract_feat(x)[-1])


def export(model: torch.nn.Module, size: int, any_size: bool = False) -> tuple[bytes, float]:
    """Export an ONNX file that accepts any batch size, and compute its error in onnxruntime.

    Args:
        model: The classifier.
        size: Height and width of the images.
        any_size: Whether the file accepts any height and width. Then the scores are compared at
            three sizes.

    Raises:
        ValueError: The scores of onnxruntime differ.
    """
    scores, channels, buffer = Scores(model).eval(), image_channels(model.backbone), io.BytesIO()
    options = dict(input_names=['images'], output_names=['scores'])
    x = torch.randn(2, channels, size, size)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # warnings of the exporters
        if any_size:  # the exporter by tracing: with torch.export this takes minutes or fails
            axes = {'images': {0: 'batch', 2: 'height', 3: 'width'}, 'scores': {0: 'batch'}}
            torch.onnx.export(scores, (x,), buffer, dynamo=False, dynamic_axes=axes, **options)
        else:
            shapes = ({0: torch.export.Dim('batch')},)
            options.update(dynamic_shapes=shapes, verbose=False)
            torch.onnx.export(scores, (x,), dynamo=True, **options).save(buffer)
    sizes = [(size, size)] + [(size + 1, size + 6), (size + 32, 2 * size)] * any_size
    return buffer.getvalue(), max(
        onnx_error(buffer.getvalue(), scores, torch.randn(3, channels, *shape)) for shape in sizes
    )


@torch.no_grad()
def onnx_error(program: bytes, scores: torch.nn.Module, x: torch.Tensor) -> float:
    """Compute the largest error of the scores in onnxruntime, relative to the largest score."""
    import onnxruntime

    session = onnxruntime.InferenceSession(program, providers=['CPUExecutionProvider'])
    found, expected = session.run(None, {'images': x.numpy()})[0], scores(x)
    error = (torch.from_numpy(found) - expected).abs().max() / expected.abs().max()
    if not error < 1e-4:
        shape = 'x'.join(map(str, x.shape[2:]))
        raise ValueError(f'the scores of onnxruntime at {shape} differ by {error:.1e}')
    return error.item()


if __name__ == '__main__':
    main()
