"""Interactive pages that need nothing else: hover names the block."""

from __future__ import annotations

import base64
import gzip
import html
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..profile import SignalProfile
from .axes import (
    COLOURS,
    EXPECTED,
    MANY_BLOCKS,
    SYMBOLS,
    TITLES,
    Scale,
    curve,
    describe,
    drawable_text,
    expected_label,
    panels_of,
    scale_of,
    transitions,
)
from .words import page_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure, Scatter


def plot_html(profiles: Sequence[SignalProfile], title: str = 'Signal propagation') -> str:
    """Draw the panels of :func:`plot_profiles` into an interactive page.

    Args:
        profiles: One or more profiles, drawn over each other.
        title: Title of the page.

    Returns:
        The page. The package ``plotly`` is needed.
    """
    figure, scales = panels(profiles, panels_of(profiles))
    for number, profile in enumerate(profiles):
        for panel, metric in enumerate(scales):
            for trace in traces(profile, metric, scales[metric], number):
                trace.showlegend = panel == 0 and trace.line.dash != 'dash'
                figure.add_trace(trace, **position(panel))
    if any(profile.curve(field)[0] for profile in profiles for field in EXPECTED.values()):
        add_legend_entry(figure, expected_label(profiles))
    return page(figure, title, page_of(profiles))


def position(panel: int) -> dict[str, int]:
    """Return row and column of a panel."""
    return dict(row=panel // 3 + 1, col=panel % 3 + 1)


def panels(
    profiles: Sequence[SignalProfile], metrics: Sequence[str]
) -> tuple[Figure, dict[str, Scale]]:
    """Return an empty figure with axes that fit all profiles, and the scale of each metric."""
    from plotly.subplots import make_subplots

    rows = len(metrics) // 3
    figure = make_subplots(rows, 3, horizontal_spacing=0.08, vertical_spacing=0.1)
    scales = {metric: scale_of(profiles, metric) for metric in metrics}
    index = [block.index for profile in profiles for block in profile.blocks]
    boundaries = {transitions(profile.blocks) for profile in profiles}
    for panel, metric in enumerate(metrics):
        place = position(panel)
        figure.update_yaxes(title=TITLES[metric], **scales[metric].plotly(), **place)
        limits = [min(index) - 0.5, max(index) + 0.5]
        figure.update_xaxes(range=limits, autorange=False, **place)
        if place['row'] == rows:
            figure.update_xaxes(title='Block index', **place)
        for x in next(iter(boundaries)) if len(boundaries) == 1 else ():
            line = dict(color='#ccc', width=1)
            figure.add_vline(x, line=line, layer='below', exclude_empty_subplots=False, **place)
    frame = dict(showline=True, mirror=True, linecolor='#222', zeroline=False, ticks='outside')
    figure.update_xaxes(showgrid=False, **frame)
    figure.update_yaxes(gridcolor='#e6e6e6', **frame)
    figure.update_layout(
        template='plotly_white',
        font=dict(color='#222', size=13),
        margin=dict(l=80, r=20, t=90, b=60),
        legend=dict(orientation='h', x=0.5, xanchor='center', y=1.01, yanchor='bottom'),
    )
    return figure, scales


def traces(profile: SignalProfile, metric: str, scale: Scale, number: int = 0) -> list[Scatter]:
    """Return the curve of a metric, and the dashed one of what theory expects."""
    import plotly.graph_objects as go

    found = []
    for field in (metric, EXPECTED.get(metric)):
        if field is None:
            continue
        expected = field != metric
        dense = len(profile.blocks) > MANY_BLOCKS
        value = '%{customdata:.5g}' if scale.kind == 'symlog' else '%{y:.5g}'
        found.append(
            go.Scatter(
                x=curve(profile, field)[0],
                **values_of(profile, field, scale),
                text=hover(profile, field),
                name=html.escape(drawable_text(profile.label or 'measured'), quote=False),
                mode='lines' if expected or dense else 'lines+markers',
                line=dict(
                    color=COLOURS[number % len(COLOURS)],
                    dash='dash' if expected else None,
                    width=1.5 if expected else 2,
                ),
                marker=dict(symbol=SYMBOLS[number % len(SYMBOLS)], size=7),
                opacity=0.7 if expected else 1.0,
                hovertemplate=f'block %{{x}}: %{{text}}<br>{field} {value}<extra></extra>',
                legendgroup=str(number),
                showlegend=False,
            )
        )
    return found


def values_of(profile: SignalProfile, field: str, scale: Scale) -> dict[str, Any]:
    """Return where values are drawn; for a symlog scale the values themselves, too."""
    values = curve(profile, field)[1]
    data = dict(y=_nulls(scale.place(values)))
    if scale.kind == 'symlog':
        data['customdata'] = _nulls(values)
    return data


def hover(profile: SignalProfile, field: str) -> list[str]:
    """Return what is said about each block of a curve, escaped: plotly reads tags as markup."""
    shown = set(curve(profile, field)[0])
    blocks = [block for block in profile.blocks if block.index in shown]
    return [html.escape(drawable_text(describe(block)), quote=False) for block in blocks]


def _nulls(values: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]


def add_legend_entry(figure: Figure, name: str) -> None:
    """Name the dashed lines, which several networks share."""
    figure.add_scatter(
        x=[None], y=[None], mode='lines', name=name, line=dict(color='#555', dash='dash')
    )


_UNPACK = """
const packed = Uint8Array.from(atob("{data}"), c => c.charCodeAt(0));
const text = new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip")));
window.plotlyLoaded = text.text().then(code => {{ (0, eval)(code); }});
"""


def page(figure: Figure, title: str, below: str = '') -> str:
    """Return a page that needs no other file; plotly.js in it is packed to a third of its size.

    Args:
        figure: The figure.
        title: Title of the page.
        below: HTML that follows the figure.
    """
    from plotly.offline import get_plotlyjs

    title = html.escape(drawable_text(title), quote=False)
    figure.update_layout(title=dict(text=title, x=0.5, xref='paper', xanchor='center'))
    config = dict(
        displaylogo=False,
        responsive=True,
        showSendToCloud=False,  # a button that uploads the chart
        modeBarButtonsToRemove=['select2d', 'lasso2d', 'autoScale2d'],
    )
    rows = len(figure._grid_ref)
    data = figure.to_json().replace('<', r'\u003c')  # no end tag may stand in a script
    packed = base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
    return f"""<!DOCTYPE html>
<html>
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
html, body {{ margin: 0; height: 100%; }}
#plot {{ height: 100%; min-height: {rows * 300 + 160}px; }}
#verdicts {{ font: 15px sans-serif; margin: 1em 5%; max-width: 70em; }}
</style>
</head>
<body>
<div id="plot"></div>
<div id="verdicts">{below}</div>
<script>{_UNPACK.format(data=packed)}</script>
<script>
const plot = document.getElementById("plot");
window.plotlyLoaded.then(() => {{
  const figure = {data};
  figure.config = {json.dumps(config)};
  return Plotly.newPlot(plot, figure);
}});
</script>
</body>
</html>
"""
