"""Records of a network whose signal grows, for the tests of films and records."""

import json

import pytest
import torch

from nf_plugins.models import NFResNet
from nf_plugins.spp import analyze
from nf_plugins.spp.report.records import parse_record


@pytest.fixture(scope='module')
def dicts():
    """The records of a network whose signal grows from epoch to epoch, as in the files."""
    torch.manual_seed(0)
    net, x = NFResNet(26, base_channels=4, skipinit=0.5), torch.randn(2, 3, 32, 32)
    found = []
    for epoch in range(1, 5):
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if name.endswith('gain'):
                    parameter.mul_(1 + torch.rand_like(parameter))
        record = dict(analyze(net, x).to_dict(), epoch=epoch, iter=10 * epoch)
        found.append(json.loads(json.dumps(record)))
    return found


@pytest.fixture
def records(dicts):
    return [parse_record(d, f'epoch_{d["epoch"]}.json') for d in dicts]
