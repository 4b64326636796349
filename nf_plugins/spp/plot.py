"""Figures of signal propagation profiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nf_plugins.utils.checks import check_choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .profile import SignalProfile

METRICS = {
    'avg_sq_mean': 'Average channel squared mean',
    'avg_var': 'Average channel variance',
    'res_avg_var': 'Residual average channel variance',
}

GRADIENT_METRICS = {
    'grad_avg_sq_mean': 'Gradient: channel squared mean',
    'grad_avg_var': 'Gradient: channel variance',
    'grad_res_avg_var': 'Gradient: residual channel variance',
}
_THEORY = {'avg_var': 'expected_var', 'res_avg_var': 'expected_res_var'}

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
MARKERS = 'osD^vP*'


def plot_metric(ax: Axes, profiles: Sequence[SignalProfile], metric: str) -> None:
    """Draw one metric of some profiles against the block index.

    The axis is logarithmic where the values span more than a factor 30. Stage
    boundaries are marked where all profiles share them. The method's expectation is
    a dashed line.

    Args:
        ax: Axes to draw into.
        profiles: The profiles.
        metric: A key of :data:`METRICS` or of :data:`GRADIENT_METRICS`.

    Raises:
        ValueError: Unknown metric.
    """
    metrics = {**METRICS, **GRADIENT_METRICS}
    check_choice('metric', metric, metrics)
    drawn = []
    for number, profile in enumerate(profiles):
        colour = COLOURS[number % len(COLOURS)]
        index, values = profile.curve(metric)
        dense = len(index) > 40
        ax.plot(
            index,
            values,
            color=colour,
            label=profile.label,
            marker=None if dense else MARKERS[number % len(MARKERS)],
            markersize=4,
            linewidth=1.4,
        )
        drawn += values
        if metric in _THEORY:
            theory = dict(zip(*profile.curve(_THEORY[metric])))
            # The stem's pooling is not in the theory.
            known = [b.index for b in profile.blocks if b.kind != 'stem']
            expected = [theory.get(i, math.nan) for i in known]
            ax.plot(known, expected, color=colour, linestyle='--', linewidth=1, alpha=0.7)
    scale, threshold = axis_scale(drawn)
    if scale == 'symlog':
        ax.set_yscale('symlog', linthresh=threshold)
    elif scale == 'log':
        ax.set_yscale('log')
    elif threshold:
        ax.set_ylim(bottom=-0.03 * threshold)  # points at 0 stay whole
    boundaries = {
        tuple(b.index - 0.5 for b in profile.blocks if b.kind == 'transition')
        for profile in profiles
    }
    if len(boundaries) == 1:
        for x in boundaries.pop():
            ax.axvline(x, color='0.8', linewidth=0.8, zorder=0)
    ax.set_xlabel('Block index', fontsize=9)
    ax.set_ylabel(metrics[metric], fontsize=9)
    ax.grid(axis='y', color='0.9', linewidth=0.6)
    ax.set_axisbelow(True)
    ax.xaxis.get_major_locator().set_params(integer=True)


def axis_scale(values: Sequence[float]) -> tuple[str, float]:
    """'linear' with the largest value, 'log', or 'symlog' with where it becomes linear.

    ``symlog`` keeps exact zeros (a zero-initialised branch) in sight.
    """
    positive = [v for v in values if 0 < v < math.inf]
    if not positive or max(positive) <= 30 * min(positive):
        return 'linear', max(positive, default=0.0)
    return 'log' if min(values) > 0 else 'symlog', max(min(positive), max(positive) * 1e-12)


def _metrics_of(profiles: Sequence[SignalProfile]) -> list[str]:
    gradients = any(profile.curve('grad_avg_var')[0] for profile in profiles)
    return [*METRICS, *(GRADIENT_METRICS if gradients else ())]


def plot_profiles(profiles: Sequence[SignalProfile], title: str | None = None) -> Figure:
    """Draw the three panels of a signal propagation plot (Brock et al. 2021a, figure 1).

    A second row has the gradient's, where it was measured.

    Args:
        profiles: One or more profiles, drawn over each other.
        title: Title of the figure.

    Returns:
        The figure: save it with ``figure.savefig``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    metrics = _metrics_of(profiles)
    rows = len(metrics) // 3
    figure = Figure(figsize=(10, 0.7 + 2.8 * rows), dpi=200, layout='constrained')
    FigureCanvasAgg(figure)
    for ax, metric in zip(figure.subplots(rows, 3, sharex=True).flat, metrics):
        plot_metric(ax, profiles, metric)
        if metric not in metrics[-3:]:
            ax.set_xlabel('')
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if any(profile.curve(theory)[0] for profile in profiles for theory in _THEORY.values()):
        handles.append(Line2D([], [], color='0.3', linestyle='--', linewidth=1, alpha=0.7))
        labels.append('expected by theory')
    if any(labels):
        columns = 120 // (max(map(len, labels)) + 8)  # about 120 characters fit
        columns = min(4, max(1, columns))
        figure.legend(handles, labels, loc='outside lower center', ncols=columns, frameon=False)
    if title:
        figure.suptitle(title)
    return figure


def plot_html(profiles: Sequence[SignalProfile], title: str = 'Signal propagation') -> str:
    """The panels as an interactive page that needs nothing else: hover names the block.

    Args:
        profiles: One or more profiles, drawn over each other.
        title: Title of the page.

    Returns:
        The page. The package ``plotly`` is needed.
    """
    from plotly.subplots import make_subplots

    metrics = _metrics_of(profiles)
    names = {**METRICS, **GRADIENT_METRICS}
    figure = make_subplots(len(metrics) // 3, 3, subplot_titles=[names[m] for m in metrics])
    for panel, metric in enumerate(metrics):
        place = dict(row=panel // 3 + 1, col=panel % 3 + 1)
        drawn = []
        for number, profile in enumerate(profiles):
            blocks = [b for b in profile.blocks if getattr(b, metric) is not None]
            drawn += [getattr(b, metric) for b in blocks]
            look = dict(color=COLOURS[number % len(COLOURS)])
            figure.add_scatter(
                x=[b.index for b in blocks],
                y=[getattr(b, metric) for b in blocks],
                text=[f'{b.name} ({b.kind}) {"x".join(map(str, b.shape))}' for b in blocks],
                hovertemplate='block %{x}: %{text}<br>%{y:.4g}',
                name=profile.label or 'measured',
                line=look,
                legendgroup=str(number),
                showlegend=panel == 0,
                mode='lines+markers',
                **place,
            )
            theory = [b for b in blocks if getattr(b, _THEORY.get(metric, ''), None) is not None]
            theory = [b for b in theory if b.kind != 'stem']
            if theory:
                figure.add_scatter(
                    x=[b.index for b in theory],
                    y=[getattr(b, _THEORY[metric]) for b in theory],
                    name=f'{profile.label} expected'.strip(),
                    line=dict(dash='dash', **look),
                    legendgroup=str(number),
                    showlegend=panel == 1,
                    mode='lines',
                    **place,
                )
        if axis_scale(drawn)[0] == 'log':
            figure.update_yaxes(type='log', exponentformat='power', **place)
        figure.update_xaxes(title_text='Block index', **place)
    figure.update_layout(title=title, template='plotly_white', legend=dict(orientation='h'))
    return figure.to_html(full_html=True, include_plotlyjs=True)
