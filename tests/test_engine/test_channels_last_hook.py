import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner

from nf_plugins.models import NFResNet, PWSResNet

CHANNELS_LAST = dict(memory_format=torch.channels_last)
NETS = {
    'NF': lambda: NFResNet(26, base_channels=8, skipinit=1.0),
    'PWS': lambda: PWSResNet(18, base_channels=8, stem_channels=8),
}


class Model(BaseModel):
    def __init__(self, name):
        super().__init__()
        self.net = NETS[name]()
        self.outputs = []

    def forward(self, x, mode='loss'):
        self.outputs.append(self.net(x)[0])
        return dict(loss=self.outputs[-1].square().mean())


def train(name, folder, hooks, epochs, resume=False):
    torch.manual_seed(0)
    data = [dict(x=torch.randn(3, 64, 64)) for _ in range(8)]
    model = Model(name)
    runner = Runner(
        model=model,
        work_dir=folder,
        train_dataloader=dict(
            dataset=data,
            batch_size=4,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        ),
        optim_wrapper=dict(
            type='nf_plugins.AGCOptimWrapper',
            clip_grad=dict(type='agc', clip_factor=0.01),
            optimizer=dict(type='SGD', lr=0.1, momentum=0.9),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        custom_hooks=hooks,
        resume=resume,
        experiment_name=f'{folder.name}_{len(hooks)}_{epochs}',
        log_level='ERROR',
    )
    runner.train()
    return model, runner


def is_channels_last(x):
    return x.is_contiguous(**CHANNELS_LAST) and not x.is_contiguous()


@pytest.mark.parametrize('name', NETS)
def test_the_training_is_the_same_and_is_resumed(name, tmp_path):
    hooks = [dict(type='nf_plugins.ChannelsLastHook'), dict(type='EMAHook')]
    plain, _ = train(name, tmp_path / 'plain', hooks[1:], 2)
    train(name, tmp_path / 'last', hooks, 1)
    last, runner = train(name, tmp_path / 'last', hooks, 2, resume=True)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(last.state_dict()[key], value, rtol=1e-4, atol=1e-5)
    kernels = [p for p in last.parameters() if p.dim() == 4 and p[0, 0].numel() > 1 < p.shape[1]]
    assert kernels and all(is_channels_last(p) for p in kernels)
    assert is_channels_last(last.outputs[-1]) and not is_channels_last(plain.outputs[-1])
    assert len(runner.optim_wrapper.optimizer.state) == len(list(last.parameters()))
