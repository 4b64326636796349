"""Two processes clip as one does, however the parameters are spread."""

import copy

import pytest
import torch
import torch.distributed as dist
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from torch import nn

from nf_plugins.checkpoint import safe_load
from nf_plugins.layers import ScaledWSConv2d

from ..tools import run_ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available(), reason='needs torch.distributed'),
]


class Net(BaseModel):
    """Standardized filters, rows, vectors, one filter alone, and a parameter that nothing uses."""

    def __init__(self):
        super().__init__()
        self.conv = ScaledWSConv2d(2, 6, 3)
        self.gain = nn.Parameter(torch.rand(6, 1, 1))
        self.mix = nn.Conv2d(6, 1, 1)
        self.fc = nn.Linear(16, 4)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, inputs, data_samples=None, mode='loss'):
        out = self.mix(self.conv(inputs) * self.gain).relu()
        return dict(loss=self.fc(out.flatten(1)).square().mean())


def train(model, images):
    """Two steps; the parameters after them, and the fraction clipped in the last one."""
    cfg = dict(
        type='nf_plugins.AGCOptimWrapper',
        clip_grad=dict(type='agc', clip_factor=0.04, skip=['fc.weight']),
        optimizer=dict(type='SGD', lr=0.5, momentum=0.9, nesterov=True, weight_decay=0.1),
    )
    wrapper = build_optim_wrapper(model, cfg)
    for batch in images:
        if isinstance(model, MMDistributedDataParallel):
            model.train_step(dict(inputs=batch), wrapper)
        else:
            with wrapper.optim_context(model):
                loss = model(batch)['loss']
            wrapper.update_params(loss)
    params = {
        name.removeprefix('module.'): (p.full_tensor() if hasattr(p, 'full_tensor') else p).detach()
        for name, p in model.named_parameters()
    }
    fraction = wrapper.message_hub.get_scalar('train/agc_clipped').current()
    return dict(params=params, fraction=fraction)


def ddp(net):
    return MMDistributedDataParallel(
        module=net, find_unused_parameters=True, detect_anomalous_params=True
    )


def rows(net):
    from torch.distributed.fsdp import fully_shard

    return fully_shard(net, mesh=dist.init_device_mesh('cpu', (2,)))


def columns(net):
    """Cut every unit of a weight: the convolution has 2 input channels, the classifier 16."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard

    def placement(param):
        return Shard(1 if param.dim() > 1 and param.shape[1] % 2 == 0 else 0)

    mesh = dist.init_device_mesh('cpu', (2,))
    return fully_shard(net, mesh=mesh, shard_placement_fn=placement)


def flat(net):
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(net, use_orig_params=True, device_id=torch.device('cpu'))


SPREADS = {'ddp': ddp, 'rows': rows, 'columns': columns}


def worker(rank, folder):
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    net, images = torch.load(f'{folder}/start.pt', weights_only=False)
    images = images.chunk(2, dim=1)[rank]
    results = {}
    for name, spread in SPREADS.items():
        results[name] = train(spread(copy.deepcopy(net)), images)
    try:
        train(flat(copy.deepcopy(net)), images)
    except ValueError as error:
        results['flat'] = str(error)
    torch.save(results, f'{folder}/rank{rank}.pt')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """What one process gives, and what each of two gives."""
    folder = tmp_path_factory.mktemp('agc')
    torch.manual_seed(0)
    net, images = Net(), torch.randn(2, 4, 2, 6, 6)
    torch.save((net, images), folder / 'start.pt')
    run_ranks(worker, str(folder))
    one = train(net, images)
    return one, [safe_load(folder / f'rank{rank}.pt') for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize('spread', SPREADS)
def test_equals_a_single_process(spread, runs):
    one, ranks = runs
    assert 0 < one['fraction'] < 1
    for rank in ranks:
        result = rank[spread]
        assert result['params'].keys() == one['params'].keys()
        for name, expected in one['params'].items():
            torch.testing.assert_close(result['params'][name], expected, msg=name)
        assert result['fraction'] == pytest.approx(one['fraction'])


def test_pieces_of_units_are_refused(runs):
    for rank in runs[1]:
        assert 'use DistributedDataParallel or torch.distributed.fsdp.fully_shard' in rank['flat']
