"""What the figures of the study share."""

from __future__ import annotations

from typing import Any

from nf_plugins.spp.plot import COLOURS, MARKERS

GRADIENTS = ['nf', 'pws', 'plain', 'ws', 'bn']
"""The networks of the collapse and of the landscapes, in the order of their colours."""


def new_figure(rows: int, columns: int, size: tuple[float, float], **kwargs: Any) -> Any:
    """Make a figure and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs)
    for ax in axes.flat:
        ax.grid(color='0.9', linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def style(network: str, networks: list[str]) -> dict[str, Any]:
    """Return colour and marker of a network; after seven, the markers are hollow."""
    number = networks.index(network)
    colour = COLOURS[number % len(COLOURS)]
    hollow = dict(markerfacecolor='white') if number >= len(COLOURS) else {}
    return dict(color=colour, marker=MARKERS[number % len(MARKERS)], **hollow)
