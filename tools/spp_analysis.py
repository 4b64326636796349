"""Signal propagation plots of a configured backbone.

    python tools/spp_analysis.py configs/nf_resnet/nf-resnet_digits.py --out-dir work_dirs/spp

measures the backbone at initialisation; a checkpoint as second argument measures
that one. Prints a table and what is wrong, and writes ``spp.json`` and the other formats.
"""

from __future__ import annotations

import argparse
import io
import json
import os.path as osp
import textwrap
from pathlib import Path

import torch
from mmengine.config import DictAction
from mmengine.logging import MMLogger

from nf_plugins.checkpoint.fit import backbone_weights
from nf_plugins.cli.arguments import ArgumentParser, add_weights_key, positive, with_weights_key
from nf_plugins.cli.command_line import command_line
from nf_plugins.cli.runner import as_usage_error_with_data
from nf_plugins.config import build_backbone, load_config
from nf_plugins.errors import as_usage_error
from nf_plugins.spp import RULES, SignalProfile, analyze, profiles_to_csv
from nf_plugins.spp.inputs import (
    INPUTS,
    config_input_size,
    dataset_batch,
    gaussian_batch,
    image_batch,
    image_channels,
    image_files,
)
from nf_plugins.spp.plot import plot_html, plot_profiles
from nf_plugins.utils.files import atomic_write_all, check_writable_dir

FORMATS = ('png', 'svg', 'json', 'csv', 'html')


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(
        description='Measure and plot how the signal propagates through a configured backbone.'
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint; without it, at initialisation')
    parser.add_argument(
        '--input',
        default='gaussian',
        metavar='{gaussian,train,val,test,FILE_OR_FOLDER}',
        help="unit Gaussian noise, the config's own data, or images (default: gaussian)",
    )
    parser.add_argument('--batch-size', type=positive, default=8, help='default: 8')
    parser.add_argument(
        '--input-size',
        type=positive,
        nargs='+',
        help='side, or height and width, of the noise (default: as the config trains)',
    )
    parser.add_argument(
        '--mode',
        default='train',
        choices=('train', 'eval'),
        help='mode of the network: in train mode batch norm uses the batch (default: train)',
    )
    parser.add_argument('--seed', type=int, default=0, help='of weights and noise (default: 0)')
    parser.add_argument('--device', default='cpu', help='default: cpu')
    parser.add_argument('--out-dir', help='default: work_dirs/spp/CONFIG')
    parser.add_argument(
        '--format', nargs='+', default=['png', 'json'], choices=FORMATS, help='default: png json'
    )
    parser.add_argument(
        '--compare',
        nargs='+',
        default=[],
        metavar='CONFIG[=CHECKPOINT]',
        help='more networks to draw into the same figure, on the same input',
    )
    parser.add_argument('--label', nargs='+', help='names for the legend, one per network')
    parser.add_argument(
        '--backward',
        action='store_true',
        help='measure the gradient, too, that flows back from noise at the output',
    )
    parser.add_argument(
        '--unit-gain',
        action='store_true',
        help='measure with gains that are zero (SkipInit, zero_init_residual) at one',
    )
    parser.add_argument(
        '--fail-on',
        nargs='+',
        default=[],
        metavar='RULE',
        choices=tuple(RULES),
        help=f'exit with status 1 if one of these fires: {", ".join(RULES)}',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of CONFIG: key=value',
    )
    add_weights_key(parser)
    args = parser.parse_args()
    if args.weights_key is not None:
        if args.checkpoint is None:
            parser.error('--weights-key needs a checkpoint')
        args.checkpoint = with_weights_key(args.checkpoint, args.weights_key)
    if args.input_size and len(args.input_size) > 2:
        parser.error('--input-size takes a side, or a height and a width')
    if args.input not in INPUTS and not (args.input and Path(args.input).exists()):
        parser.error(f'--input takes {", ".join(INPUTS)}, a file or a folder, got {args.input!r}')
    if args.label and len(args.label) != 1 + len(args.compare):
        parser.error(f'--label takes {1 + len(args.compare)} names, got {len(args.label)}')
    return args


def measure(
    args: argparse.Namespace, config: str, checkpoint: str | None, options: dict | None = None
) -> SignalProfile:
    cfg = load_config(config, options)
    backbone = build_backbone(cfg, config, args.seed)
    if checkpoint is not None:
        backbone.load_state_dict(backbone_weights(checkpoint, backbone)[0])
    with as_usage_error(f'cannot tell the input size of {config}'):
        size = args.input_size or config_input_size(cfg)
    channels = image_channels(backbone)
    info = dict(kind=args.input)
    if args.input == 'gaussian':
        shape = (args.batch_size, channels, size[0], size[-1])
        with as_usage_error(f'cannot make noise of shape {shape}'):
            inputs = gaussian_batch(shape, args.seed)
    elif args.input in INPUTS:
        about = f'cannot read the {args.input} data of {config}'
        with as_usage_error_with_data(about, cfg, [f'{args.input}_dataloader']):
            inputs = dataset_batch(cfg, args.input, args.batch_size, args.seed)
    else:
        info = dict(kind='images', path=args.input)
        with as_usage_error(f'cannot read the images of {args.input}'):
            files = image_files(args.input)[: args.batch_size]
            inputs = image_batch(cfg, files, (size[0], size[-1]), channels, args.seed)
    what = f'{inputs.shape[0]} inputs of {"x".join(map(str, inputs.shape[1:]))}'
    what += ' (see --batch-size, --input-size)'
    with as_usage_error(f'cannot run the backbone of {config} on {what} on {args.device}'):
        profile = analyze(
            backbone.to(args.device),
            inputs.to(args.device),
            mode=args.mode,
            seed=args.seed,
            backward=args.backward,
            unit_gain=args.unit_gain,
            input_info=info,
        )
    profile.config, profile.checkpoint = config, checkpoint
    profile.label = Path(config).stem
    if checkpoint is not None:
        profile.label += f' ({Path(checkpoint).stem})'
    return profile


def render(profiles: list[SignalProfile], form: str) -> bytes | str:
    """The content of one output file."""
    if form == 'json':
        record = profiles[0].to_dict()
        if len(profiles) > 1:
            record['compared'] = [profile.to_dict() for profile in profiles[1:]]
        return json.dumps(record, indent=1, allow_nan=False) + '\n'
    if form == 'csv':
        return profiles_to_csv(profiles)
    if form == 'html':
        return plot_html(profiles)
    buffer = io.BytesIO()
    plot_profiles(profiles).savefig(buffer, format=form)
    return buffer.getvalue()


@command_line
def main() -> int:
    with as_usage_error('bad arguments'):
        args = parse_args()
    MMLogger.get_instance('mmengine').setLevel('ERROR')  # no line per initialised parameter
    out_dir = Path(args.out_dir or osp.join('work_dirs', 'spp', Path(args.config).stem))
    with as_usage_error(f'cannot write into {out_dir}'):
        check_writable_dir(out_dir)
    with as_usage_error(f'cannot use the device {args.device}'):
        torch.empty(0, device=args.device)

    profiles = [measure(args, args.config, args.checkpoint, args.cfg_options)]
    for source in args.compare:
        config, _, checkpoint = source.partition('=')
        profiles.append(measure(args, config, checkpoint or None))
    fired = False
    for number, profile in enumerate(profiles):
        if args.label:
            profile.label = args.label[number]
        source = f'{profile.input["kind"]} input of {"x".join(map(str, profile.input["shape"]))}'
        print(f'{profile.label}: {profile.mode} mode, {source}')
        print(profile.table())
        for verdict in profile.verdicts():
            text = f'{verdict["severity"]}: {verdict["rule"]}: {verdict["message"]}'
            print(textwrap.fill(text, 100, subsequent_indent='    '))
            fired |= verdict['rule'] in args.fail_on
        print()

    files = {form: render(profiles, form) for form in dict.fromkeys([*args.format, 'json'])}
    with as_usage_error(f'cannot write into {out_dir}'):
        # Other formats, of another network perhaps, are removed.
        atomic_write_all({out_dir / f'spp.{form}': files.get(form) for form in FORMATS})
    print('written:', *(str(out_dir / f'spp.{form}') for form in files))
    return int(fired)


if __name__ == '__main__':
    main()
