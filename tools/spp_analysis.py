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
from collections.abc import Sequence
from pathlib import Path

from mmengine.logging import MMLogger

from nf_plugins.cli.arguments import (
    ArgumentParser,
    add_measuring_arguments,
    measuring_options,
    with_weights_key,
)
from nf_plugins.cli.command_line import command_line
from nf_plugins.config import load_config
from nf_plugins.errors import as_usage_error, say
from nf_plugins.spp import (
    RULES,
    SignalProfile,
    headline,
    plot_html,
    plot_profiles,
    profiles_to_csv,
)
from nf_plugins.spp.from_config import measure_config
from nf_plugins.spp.inputs import INPUTS
from nf_plugins.spp.rules import list_rules, names_of, resolve_thresholds
from nf_plugins.utils.files import atomic_write_all, check_writable_dir

FORMATS = ('png', 'svg', 'pdf', 'json', 'csv', 'html')


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        description='Measure and plot how the signal propagates through a configured backbone.'
    )
    parser.add_argument('config', help='config file; or published weights, such as deepmind://F0')
    parser.add_argument(
        'checkpoint',
        nargs='?',
        help='checkpoint, or published weights by name; without it, at initialisation',
    )
    parser.add_argument(
        '--input',
        default='gaussian',
        metavar='{gaussian,train,val,test,FILE_OR_FOLDER}',
        help="unit Gaussian noise, the config's own data, or images (default: gaussian)",
    )
    add_measuring_arguments(parser)
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
        help=f'exit with status 1 if one of these fires: {", ".join(RULES)}, or one of your own '
        '(custom_imports in the config)',
    )
    parser.add_argument(
        '--threshold',
        nargs='+',
        default=[],
        metavar='RULE=VALUE',
        help='other thresholds of the rules, such as explosion=50; see --list-rules',
    )
    parser.add_argument(
        '--list-rules',
        action=_ListRules,
        nargs=0,
        help='print the rules with their severities and thresholds, and stop',
    )
    args = parser.parse_args(arguments)
    check_rules(args)
    if args.weights_key is not None:
        if args.checkpoint is None:
            parser.error('--weights-key needs a checkpoint')
        args.checkpoint = with_weights_key(args.checkpoint, args.weights_key)
    if args.input not in INPUTS and not (args.input and Path(args.input).exists()):
        parser.error(f'--input takes {", ".join(INPUTS)}, a file or a folder, got {args.input!r}')
    if args.label and len(args.label) != 1 + len(args.compare):
        parser.error(f'--label takes {1 + len(args.compare)} names, got {len(args.label)}')
    return args


class _ListRules(argparse.Action):
    """Print the rules, as ``--version`` prints a version."""

    def __call__(self, parser, *args, **kwargs):
        print(list_rules())
        parser.exit()


def check_rules(args: argparse.Namespace) -> None:
    """Raise a ValueError for a rule that there is not; the config may import some."""
    values = dict(text.partition('=')[::2] for text in args.threshold)
    names = [*args.fail_on, *(key.partition('.')[0] for key in values)]
    if not set(names) <= set(RULES):
        load_config(args.config, args.cfg_options)
    for name in args.fail_on:
        if name not in RULES:
            raise ValueError(
                f'--fail-on: invalid choice: {name!r} (choose from {", ".join(RULES)})'
            )
    try:
        args.threshold = {key: float(value) for key, value in values.items()}
    except ValueError:
        raise ValueError(f'--threshold takes RULE=NUMBER, got {args.threshold}') from None
    resolve_thresholds(args.threshold)


def measure(args: argparse.Namespace) -> list[SignalProfile]:
    """Measure the network of the arguments, and those to compare it with."""
    options = measuring_options(args)
    profiles = [measure_config(args.config, args.checkpoint, options, args.cfg_options)]
    for source in args.compare:
        config, _, checkpoint = source.partition('=')
        profiles.append(measure_config(config, checkpoint or None, options))
    for profile, label in zip(profiles, args.label or ()):
        profile.label = label
    return profiles


def render(profiles: list[SignalProfile], form: str) -> bytes | str:
    """Return the content of one output file."""
    if form == 'json':
        data = profiles[0].to_dict()
        if len(profiles) > 1:
            data['compared'] = [profile.to_dict() for profile in profiles[1:]]
        return json.dumps(data, indent=1, allow_nan=False) + '\n'
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

    profiles = measure(args)
    fired = False
    for profile in profiles:
        source = f'{profile.input["kind"]} input of {"x".join(map(str, profile.input["shape"]))}'
        say(f'{profile.label}: {profile.mode} mode, {source}')
        verdicts = profile.verdicts(args.threshold)
        print(textwrap.fill(headline(verdicts), 100, subsequent_indent='    '))
        print(profile.table())
        for verdict in verdicts:
            text = f'{verdict["severity"]}: {verdict["rule"]}: {verdict["message"]}'
            print(textwrap.fill(text, 100, subsequent_indent='    '))
            fired |= not names_of(verdict).isdisjoint(args.fail_on)
        print()

    files = {form: render(profiles, form) for form in dict.fromkeys([*args.format, 'json'])}
    with as_usage_error(f'cannot write into {out_dir}'):
        # Other formats, of another network perhaps, are removed.
        atomic_write_all({out_dir / f'spp.{form}': files.get(form) for form in FORMATS})
    say('written:', *(str(out_dir / f'spp.{form}') for form in files))
    return int(fired)


if __name__ == '__main__':
    main()
