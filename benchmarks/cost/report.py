"""Table and figure of the costs."""

from __future__ import annotations

import io


def table(results: dict[str, dict]) -> str:
    """Format the results in Markdown: ratios of medians, with the quartiles."""
    lines = []
    for part in ('training step', 'inference'):
        found = results.get(part, {})
        if not found:
            continue
        names = list(dict.fromkeys(name for times in found.values() for name in times))
        lines += [
            f'| {part} : plain | ' + ' | '.join(names) + ' |',
            '| --- |' + ' ---: |' * len(names),
        ]
        for label, times in found.items():
            cells = [_ratio(times[n]) if n in times else '' for n in names]
            lines.append(f'| {label} | ' + ' | '.join(cells) + ' |')
        lines.append('')
    sizes = results.get('memory', {})
    for label, values in sizes.items():
        lines += [f'| {label} | MiB | : plain |', '| --- | ---: | ---: |']
        lines += [
            f'| {name} | {value:.0f} | {value / values["plain"]:.3f} |'
            for name, value in values.items()
        ]
        lines.append('')
    if 'clipping' in results:
        ms = {name: value['ms'][1] for name, value in results['clipping'].items()}
        ratio = results['clipping']['ours']['ratio']
        lines += [
            '| AGC, NFNet-F0 | ms |',
            '| --- | ---: |',
            *(f'| {name} | {value:.1f} |' for name, value in ms.items()),
            f'| ratio | {ratio:.3f} |',
            '',
        ]
    if 'factors' in results:
        lines += ['| passes that multiply activations by a number | |', '| --- | ---: |']
        lines += [f'| {name} | {count} |' for name, count in results['factors'].items()]
        lines.append('')
    if 'parameters' in results:
        lines += ['| parameters, without a classifier | million |', '| --- | ---: |']
        lines += [f'| {name} | {n / 1e6:.3f} |' for name, n in results['parameters'].items()]
        lines.append('')
    return '\n'.join(lines)


def _ratio(time: dict) -> str:
    """Format a ratio of medians with its quartiles."""
    low, high = time['ratio_quartiles']
    return f'{time["ratio"]:.3f} ({low:.2f} to {high:.2f})'


def figure(results: dict[str, dict]) -> bytes:
    """Draw the ratios as bars with quartiles, as PNG."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    panels = [
        (f'{part}\n{label}', times)
        for part in ('training step', 'inference')
        for label, times in results.get(part, {}).items()
    ]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(3.4 * columns, 2.9 * rows), squeeze=False)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    for ax, (title, times) in zip(axes.flat, panels):
        names = list(times)
        values = [times[name]['ratio'] for name in names]
        low, high = zip(*(times[name]['ratio_quartiles'] for name in names))
        errors = [
            [max(0.0, v - x) for v, x in zip(values, low)],
            [max(0.0, x - v) for v, x in zip(values, high)],
        ]
        colours = ['0.6' if name == 'plain' else '#0072b2' for name in names]
        ax.barh(names, values, color=colours, xerr=errors, error_kw=dict(lw=1, ecolor='0.3'))
        for y, value in enumerate(values):
            ax.text(0.02, y, f'{value:.2f}', va='center', color='white', fontsize=8)
        ax.axvline(1, color='0.3', lw=0.8, ls='--')
        ax.invert_yaxis()
        ax.set_title(title, fontsize=9)
        ax.tick_params(labelsize=8)
        ax.set_xlabel('time : plain', fontsize=8)
    fig.tight_layout()
    buffer = io.BytesIO()
    fig.savefig(buffer, dpi=130)
    plt.close(fig)
    return buffer.getvalue()
