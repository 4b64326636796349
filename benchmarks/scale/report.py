"""The tables of docs/scale.md."""

from __future__ import annotations


def memory_table(paper: dict) -> list[str]:
    lines = []
    for row in paper['memory']:
        cells = ' | '.join(f'{row["gib"][name]:.1f}' for name in ('states', 'activations', 'sum'))
        recomputed = ', `with_cp=True`' if row['with_cp'] else ''
        lines.append(f'| {row["states"]}, {row["activations"]}{recomputed} | {cells} |')
    return lines


def communication_table(paper: dict) -> list[str]:
    return [
        f'| weights gathered in {name} | {sent["ddp"]:.2f} | {sent["fsdp2"]:.2f} |'
        for name, sent in paper['sent'].items()
    ]


def processes_table(found: dict[str, dict]) -> list[str]:
    """A row for each number of processes: seconds of a step of DDP, and the ratios to it."""
    names = [name for name in next(iter(found.values())) if name != 'DDP']
    lines = [
        f'| processes | DDP, s | {" | ".join(f"{name} : DDP" for name in names)} |',
        '| ---: | ---: |' + ' ---: |' * len(names),
    ]
    for number, jobs in found.items():
        ratios = ' | '.join(f'{jobs[name]["ratio"]:.2f}' for name in names)
        lines.append(f'| {number} | {jobs["DDP"]["seconds"][1]:.2f} | {ratios} |')
    return lines


def tables(found: dict) -> list[str]:
    """Return the lines of all tables."""
    paper = found['paper']
    return [
        *memory_table(paper),
        *communication_table(paper),
        *processes_table(found['processes']),
    ]
