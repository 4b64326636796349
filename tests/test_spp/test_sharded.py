"""An analysis of a network whose parameters are spread by FSDP2, here over one process."""

import pytest
import torch
import torch.distributed as dist

from nf_plugins.models import NFResNet
from nf_plugins.spp import analyze

pytestmark = pytest.mark.skipif(not dist.is_available(), reason='needs torch.distributed')


@pytest.fixture
def mesh(tmp_path):
    store = f'file://{tmp_path}/store'
    dist.init_process_group('gloo', init_method=store, rank=0, world_size=1)
    yield dist.init_device_mesh('cpu', (1,))
    dist.destroy_process_group()


def network(mesh=None):
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    net = NFResNet(26, base_channels=4, skipinit=False)
    if mesh is not None:
        for stage in net.stages:
            fully_shard(stage, mesh=mesh)
        fully_shard(net, mesh=mesh)
    return net


@pytest.mark.slow
@pytest.mark.parametrize('passes', [0, 1], ids=['before the first pass', 'after a pass'])
def test_as_the_plain_network(mesh, passes):
    """The profile is the same, and so is the training after it."""
    x = torch.randn(2, 3, 32, 32)
    nets = [network(), network(mesh)]
    for net in nets:
        for _ in range(passes):
            net(x)
    plain, sharded = (analyze(net, x) for net in nets)
    assert len(plain.blocks) == 9
    for block, other in zip(plain.blocks, sharded.blocks, strict=True):
        assert other.avg_var == block.avg_var
    for net in nets:
        sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(2):
            net(x)[-1].square().mean().backward()
            sgd.step()
            sgd.zero_grad()
    after = {name: p.full_tensor() for name, p in nets[1].named_parameters()}
    for name, p in nets[0].named_parameters():
        torch.testing.assert_close(after[name], p.detach(), msg=name)
