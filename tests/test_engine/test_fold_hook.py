import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from nf_plugins.layers import ScaledWSConv2d, StandardizedConv2d


class Classifier(BaseModel):
    standardized = []  # of each forward pass, also of copies

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(ScaledWSConv2d(3, 8, 3, padding='same'), nn.BatchNorm2d(8))

    def forward(self, x, mode='tensor'):
        self.standardized.append(isinstance(self.net[0], StandardizedConv2d))
        return [self.net(x)]


class Mean(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [out.square().mean().item() for out in data_samples]

    def compute_metrics(self, results):
        return dict(mean=sum(results) / len(results))


@pytest.mark.parametrize('refused', [False, True])
@pytest.mark.parametrize('ema', [False, True])
def test_metrics_are_the_same_and_the_model_comes_back(ema, refused, tmp_path):
    found, seen = [], Classifier.standardized
    data = [dict(x=torch.randn(3, 8, 8)) for _ in range(6)]
    for fold in (False, True):
        torch.manual_seed(0)
        model = Classifier()
        if refused:
            model.net[0].register_forward_hook(lambda module, args, out: None)
        before = model.state_dict()
        seen.clear()
        runner = Runner(
            model=model,
            work_dir=tmp_path,
            test_dataloader=dict(
                dataset=data,
                batch_size=3,
                sampler=dict(type='DefaultSampler', shuffle=False),
                collate_fn=dict(type='default_collate'),
            ),
            test_evaluator=Mean(),
            test_cfg=dict(),
            custom_hooks=[dict(type='nf_plugins.FoldHook')] * fold + [dict(type='EMAHook')] * ema,
            experiment_name=f'{tmp_path.name}_{fold}',
            log_level='ERROR',
        )
        found.append(runner.test()['mean'])
        assert seen == [refused or not fold] * 2
        assert runner.model is model
        after = model.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
        assert after.keys() == before.keys()
    assert found[1] == pytest.approx(found[0], rel=1e-6)
