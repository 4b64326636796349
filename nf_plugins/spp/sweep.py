"""Coordinate check: measure a config at several values of one option, and say what is flat."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from mmengine.config import DictAction

from nf_plugins.errors import UsageError

from .from_config import Options, measure_config
from .profile import BlockSignal, SignalProfile
from .report.axes import EXPECTED, panels_of

__all__ = ['Sweep', 'Trend', 'measure_sweep', 'parse_sweep']

FLAT_SLOPE = 0.15
"""A line is flat up to this slope in log-log: a doubled value changes the metric by 11 %."""
OFF_LINE = 1.5
"""A metric that is further from its line than by this factor does not follow a power."""
NEGLIGIBLE = 0.05
"""A squared mean that is everywhere below this share of the variance counts as flat."""

TOOL_OPTIONS = ('batch_size', 'input_size', 'seed')
"""Options of the tool that can be swept as those of the config."""
SCHEMA = 'nf_plugins.sweep/1'


def parse_sweep(text: str) -> tuple[str, list]:
    """Split ``OPTION=VALUE,VALUE,...`` into the option and its values.

    Args:
        text: The option is one of the config, or one of :data:`TOOL_OPTIONS`. Values are written
            as for ``--cfg-options``.

    Raises:
        ValueError: There is no option, or there are no two different values.

    Example:
        >>> parse_sweep('model.backbone.depth=26,50')
        ('model.backbone.depth', [26, 50])
        >>> parse_sweep('input-size=64,(96,128)')
        ('input_size', [64, (96, 128)])
    """
    option, equals, listed = (part.strip() for part in text.partition('='))
    if not option or not equals:
        raise ValueError(f'--sweep takes OPTION=VALUE,VALUE,..., got {text!r}')
    if option.replace('-', '_') in TOOL_OPTIONS:
        option = option.replace('-', '_')
    try:
        values = DictAction._parse_iterable(f'[{listed}]')
    except AssertionError as error:
        raise ValueError(f'--sweep {option}: cannot read the values {listed!r}: {error}') from None
    if len(values) == 1 and isinstance(values[0], list | tuple):  # [8,16] is 8,16
        values = list(values[0])
    if len(values) < 2:
        raise ValueError(f'--sweep {option} takes two or more values, got {listed!r}')
    for number, value in enumerate(values):
        if value == '' or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f'--sweep {option}: {value!r} is not a value to measure')
        if value in values[:number]:
            raise ValueError(f'--sweep {option} has the value {value!r} twice')
    return option, values


@dataclass(frozen=True)
class Trend:
    """What a metric does at one place of the network, against the swept value.

    Args:
        place: The block, or the end of a stage.
        values: The metric at each value.
        slope: Slope of the line through the logarithms; None if there is none, as values are
            not positive numbers.
        off_line: Largest factor between the metric and that line; without a line, between the
            largest and the smallest.
        expected: What theory expects at each value, None without a theory.
        expected_slope: The slope of that.
        negligible: Whether the metric is a squared mean that is small beside the variance.
    """

    place: str
    values: tuple[float, ...]
    slope: float | None
    off_line: float
    expected: tuple[float, ...] | None = None
    expected_slope: float | None = None
    negligible: bool = False

    @classmethod
    def of(
        cls,
        place: str,
        at: Sequence[float] | None,
        values: Sequence[float],
        expected: Sequence[float] | None = None,
    ) -> Trend:
        """Fit a line to the logarithms.

        Args:
            place: See the class.
            at: The swept values in ascending order; None if they are not positive numbers.
            values: The metric at each.
            expected: What theory expects at each.

        Example:
            >>> trend = Trend.of('layer1', [8, 16, 32], [1.0, 2.0, 4.0])
            >>> round(trend.slope, 2), trend.kind
            (1.0, 'grows')
        """
        slope, off_line = _fit(at, values)
        if expected is None:
            return cls(place, tuple(values), slope, off_line)
        theory = _fit(at, expected)[0]
        return cls(place, tuple(values), slope, off_line, tuple(expected), theory)

    @property
    def kind(self) -> str:
        """'flat', 'grows', 'falls', 'uneven', 'differs' (of values without order), 'not finite'."""
        if not all(map(math.isfinite, self.values)):
            return 'not finite'
        if self.negligible or min(self.values) == max(self.values) == 0:
            return 'flat'
        on_line = self.off_line <= OFF_LINE
        if self.slope is None:
            return 'flat' if on_line else 'differs'
        if on_line and abs(self.slope) <= FLAT_SLOPE:
            return 'flat'
        steps = np.diff(self.values)
        if on_line or (steps >= 0).all() or (steps <= 0).all():
            return 'grows' if self.slope > 0 else 'falls'
        return 'uneven'

    def as_expected(self) -> bool:
        """Whether theory expects this slope."""
        if self.slope is None or self.expected_slope is None:
            return False
        return abs(self.slope - self.expected_slope) <= FLAT_SLOPE


def _fit(at: Sequence[float] | None, values: Sequence[float]) -> tuple[float | None, float]:
    """Return the slope of a line through the logarithms, and the largest factor off that line."""
    if not all(math.isfinite(value) and value > 0 for value in values) or len(values) < 2:
        return None, math.inf
    logs = np.log(values)
    if at is None:
        return None, float(np.exp(np.ptp(logs)))
    x = np.log(at)
    slope, start = np.polyfit(x, logs, 1)
    return float(slope), float(np.exp(np.abs(start + slope * x - logs).max()))


@dataclass
class Sweep:
    """The profiles of a config at several values of one option.

    Args:
        option: The option.
        values: Its values that could be measured, numbers in ascending order.
        profiles: The profile of each.
        failed: Other values, as text, and what was wrong.
        label: Name of the network.
    """

    option: str
    values: list
    profiles: list[SignalProfile]
    failed: dict[str, str] = field(default_factory=dict)
    label: str = ''

    def at(self) -> list[float] | None:
        """Return the values as numbers for a logarithmic axis, None if they are none."""
        if all(type(value) in (int, float) and 0 < value < 1e300 for value in self.values):
            return [float(value) for value in self.values]
        return None

    def places(self) -> dict[str, list[BlockSignal]]:
        """Return the blocks to compare: name -> the block in each profile.

        These are all blocks where all profiles have the same ones. Else they are the stem and
        the ends of the stages; a stage begins with a transition.
        """
        found = [{block.name: block for block in profile.blocks} for profile in self.profiles]
        if any(list(blocks) != list(found[0]) for blocks in found):
            found = [_stage_ends(profile) for profile in self.profiles]
        common = [name for name in found[0] if all(name in blocks for blocks in found)]
        return {name: [blocks[name] for blocks in found] for name in common}

    def trends(self, metric: str) -> list[Trend]:
        """Return what a metric does at each place that has it.

        Args:
            metric: A metric of the blocks, such as 'avg_var'.
        """
        trends = []
        for place, blocks in self.places().items():
            values = [getattr(block, metric) for block in blocks]
            if None in values:
                continue
            trend = Trend.of(place, self.at(), values, _theory(blocks, metric))
            trends.append(replace(trend, negligible=_is_negligible(blocks, metric)))
        return trends

    def words(self) -> dict[str, str]:
        """Say of each metric whether it is flat against the option, and where it is not."""
        words = {metric: self._words(metric) for metric in panels_of(self.profiles)}
        if self.is_same():
            words['same'] = f'all values of {self.option} give the same profile: nothing reads it'
        return words

    def _words(self, metric: str) -> str:
        trends = self.trends(metric)
        where = f'{metric} against {self.option}'
        if len(self.profiles) < 2 or not trends:
            return f'{where}: nothing to compare'
        kinds: dict[str, list[Trend]] = {}
        for trend in trends:
            kinds.setdefault(trend.kind, []).append(trend)
        flat = kinds.pop('flat', [])
        text = f'{len(flat)} of {len(trends)} places{slope_range(flat)}'
        if not kinds:
            return f'{where}: flat in {text}'
        parts = [_group_words(kind, group) for kind, group in kinds.items()]
        return f'{where}: not flat: {"; ".join([*parts, f"flat in {text}"])}'

    def is_same(self) -> bool:
        """Whether all profiles are equal: the network does not read the option."""
        first, *others = self.profiles
        return bool(others) and all(profile.blocks == first.blocks for profile in others)

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        metrics = panels_of(self.profiles)
        trends = {
            metric: {
                trend.place: dict(
                    kind=trend.kind, slope=trend.slope, expected_slope=trend.expected_slope
                )
                for trend in self.trends(metric)
            }
            for metric in metrics
        }
        return dict(
            schema=SCHEMA,
            option=self.option,
            values=self.values,
            failed=self.failed,
            trends=trends,
            words=self.words(),
            profiles=[profile.to_dict() for profile in self.profiles],
        )


def slope_range(trends: Sequence[Trend]) -> str:
    """Return the lowest and the highest slope as text, '' without a slope that counts."""
    slopes = [t.slope for t in trends if t.slope is not None and not t.negligible]
    if not slopes:
        return ''
    low, high = f'{min(slopes):+.2f}', f'{max(slopes):+.2f}'
    return f', slope {low}' if low == high else f', slopes {low} to {high}'


def _stage_ends(profile: SignalProfile) -> dict[str, BlockSignal]:
    """Return the stem and the last block of each stage."""
    ends, stage = {}, 1
    for block, following in zip(profile.blocks, [*profile.blocks[1:], None]):
        if block.kind == 'stem':
            ends['stem'] = block
        elif following is None or following.kind == 'transition':
            ends[f'end of stage {stage}'] = block
            stage += 1
    return ends


def _theory(blocks: Sequence[BlockSignal], metric: str) -> list[float] | None:
    """Return what theory expects of some blocks; the stem's pooling is not part of it."""
    if metric not in EXPECTED or blocks[0].kind == 'stem':
        return None
    values = [getattr(block, EXPECTED[metric]) for block in blocks]
    return None if None in values else values


def _is_negligible(blocks: Sequence[BlockSignal], metric: str) -> bool:
    """Whether a squared mean is small beside the variance in all of some blocks."""
    if not metric.endswith('avg_sq_mean'):
        return False
    variance = metric.replace('avg_sq_mean', 'avg_var')
    return all(
        getattr(block, metric) < NEGLIGIBLE * (getattr(block, variance) or 0.0) for block in blocks
    )


def _group_words(kind: str, trends: Sequence[Trend]) -> str:
    """Say where a metric is not flat: how often, and where most."""
    most = max(trends, key=lambda trend: abs(trend.slope or 0.0))
    text = f'{kind} in {len(trends)}, '
    text += f'most in {most.place} (' if len(trends) > 1 else f'{most.place} ('
    if most.slope is not None:
        text += f'slope {most.slope:+.2f}'
        if most.expected_slope is not None:
            text += f', in theory {most.expected_slope:+.2f}'
        text += ', '
    values = most.values
    text += f'from {values[0]:.3g} to {values[-1]:.3g})'
    if all(trend.as_expected() for trend in trends):
        text += ', as theory expects'
    return text


def measure_sweep(
    config: str,
    option: str,
    values: Sequence,
    checkpoint: str | None = None,
    options: Options | None = None,
    cfg_options: dict | None = None,
    done: Callable[[str, SignalProfile], None] = lambda value, profile: None,
) -> Sweep:
    """Measure the backbone of a config at several values of one option.

    Args:
        config: As for :func:`~nf_plugins.spp.from_config.measure_config`.
        option: A setting of the config, as for ``--cfg-options``, or one of
            :data:`TOOL_OPTIONS`.
        values: Its values.
        checkpoint: The weights; None for those at initialisation.
        options: How the config is measured.
        cfg_options: Other settings to change in the config.
        done: Called with each value, as text, and its profile.

    Returns:
        The profiles. A value that cannot be measured is in ``failed``, and the others are measured.

    Raises:
        UsageError: No value can be measured, or the option cannot have an effect.

    Example:
        >>> sweep = measure_sweep('nf-resnet_digits', 'model.backbone.base_channels', [4, 8])
        >>> sweep.values, list(sweep.places())[:3]
        ([4, 8], ['stem', 'layer1.0', 'layer1.1'])
    """
    options = options or Options()
    if option == 'input_size' and options.input != 'gaussian':
        raise UsageError(f'input_size is the size of noise, and the input is {options.input}')
    failed: dict[str, str] = {}
    measured, profiles = [], []
    for value in _ordered(values):
        own, changes = options, dict(cfg_options or {})
        try:
            if option in TOOL_OPTIONS:
                own = replace(options, **{option: _for_tool(option, value)})
            else:
                changes[option] = value
            profile = measure_config(config, checkpoint, own, changes)
        except UsageError as error:
            failed[str(value)] = str(error)
            continue
        profile.label = f'{option}={value}'
        measured.append(value)
        profiles.append(profile)
        done(str(value), profile)
    if not measured:
        raise UsageError(f'no value of {option} can be measured: {next(iter(failed.values()))}')
    return Sweep(option, measured, profiles, failed)


def _ordered(values: Sequence) -> list:
    """Return numbers in ascending order, other values as they are."""
    numbers = all(type(value) in (int, float) for value in values)
    return sorted(values) if numbers else list(values)


def _for_tool(option: str, value: Any) -> Any:
    if option != 'input_size':
        return value
    sides = tuple(value) if isinstance(value, list | tuple) else (value,)
    if len(sides) not in (1, 2):
        raise UsageError(f'it takes a side, or a height and a width, got {value}')
    return sides
