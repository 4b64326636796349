"""Training steps of several processes on one machine: DDP and FSDP2, AGC, the SPP analysis."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from benchmarks.common import quiet
from nf_plugins.functional import adaptive_clip_grad_
from nf_plugins.models.backbones.nf_block import NFBlock
from nf_plugins.spp import analyze

NET = dict(type='nf_plugins.NFNet', arch=dict(base='f0', width_mult=1 / 4, group_width=32))
SHAPE = (4, 3, 64, 64)
"""Images of each process."""

FORMS = ('DDP', 'DDP + AGC', 'FSDP2', 'FSDP2 + AGC')


def network(form: str) -> nn.Module:
    """Build the network; under FSDP2 each block is gathered by itself."""
    torch.manual_seed(0)
    net = MODELS.build(NET).train()
    if form.startswith('DDP'):
        return DistributedDataParallel(net, gradient_as_bucket_view=True)
    mesh = dist.init_device_mesh('cpu', (dist.get_world_size(),))
    options = dict(mesh=mesh, ignored_params=set(gains(net)))  # FSDP2 takes no scalars
    for block in [module for module in net.modules() if isinstance(module, NFBlock)]:
        fully_shard(block, **options)
    return fully_shard(net, **options)


def gains(net: nn.Module) -> list[nn.Parameter]:
    """Return the SkipInit gains, parameters without dimensions."""
    return [p for p in net.parameters() if p.dim() == 0]


def average_gains(net: nn.Module) -> None:
    """Average the gradients of the parameters that FSDP2 leaves out, in one message."""
    scalars = gains(net)
    grads = torch.stack([p.grad for p in scalars])
    dist.all_reduce(grads)
    for p, grad in zip(scalars, grads / dist.get_world_size()):
        p.grad = grad


def step_of(form: str, x: Tensor) -> Callable[[], None]:
    net = network(form)
    sgd = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, nesterov=True)

    def step() -> None:
        net(x)[-1].square().mean().backward()
        if form.startswith('FSDP2'):
            average_gains(net)
        if 'AGC' in form:
            adaptive_clip_grad_(net.parameters(), 0.01)
        sgd.step()
        sgd.zero_grad()

    return step


def measure_rank(rank: int, processes: int, rounds: int, folder: str) -> None:
    """Measure the jobs in turn; the first process writes the seconds of its rounds."""
    torch.set_num_threads(1)
    store = f'file://{folder}/store'
    dist.init_process_group('gloo', init_method=store, rank=rank, world_size=processes)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(rank))
    with quiet():
        jobs = {form: step_of(form, x) for form in FORMS}
        for form in ('DDP', 'FSDP2'):
            net = network(form)
            jobs[f'{form}: analysis'] = lambda net=net: analyze(net, x, sync=True)
        times: dict[str, list[float]] = {name: [] for name in jobs}
        for number in range(rounds + 1):
            for name, job in jobs.items():  # the same order in all processes, as they communicate
                dist.barrier()
                start = time.perf_counter()
                job()
                dist.barrier()
                if number:
                    times[name].append(time.perf_counter() - start)
    if rank == 0:
        Path(folder, 'times.json').write_text(json.dumps(times))
    dist.destroy_process_group()


def measure(processes: int, rounds: int) -> dict[str, Any]:
    """Measure the seconds (median and quartiles) of each job, and its ratio to a step of DDP."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(
            measure_rank, (processes, rounds, folder), nprocs=processes, join=True
        )
        times = json.loads(Path(folder, 'times.json').read_text())
    base = statistics.median(times['DDP'])
    return {
        name: dict(
            seconds=statistics.quantiles(seconds, n=4, method='inclusive'),
            ratio=statistics.median(seconds) / base,
        )
        for name, seconds in times.items()
    }
