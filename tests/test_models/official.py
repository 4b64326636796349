"""The reference cases of DeepMind's networks, as networks here."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from nf_plugins.models import NFNet, NFRegNet, NFResNet, ReLUNeck

from ..conftest import DATA

TANH_GELU = dict(type='GELU', approximate='tanh')
F0W8 = dict(base='f0', widths=(32, 64, 192, 192), stem_channels=16, group_width=16)
CASES = {
    'nf_resnet_50_relu_se0_skip1_w1': (lambda **kw: NFResNet(50, 16, **kw), 'ReLU', 1.0),
    'nf_resnet_50_silu_se1_skip0_w1': (
        lambda **kw: NFResNet(50, 16, act_cfg=dict(type='SiLU'), attention='se', **kw),
        'SiLU',
        0.0,
    ),
    'nf_regnet_B0_w0.25': (
        lambda **kw: NFRegNet(dict(base='b0', width_mult=0.25), **kw),
        'SiLU',
        0.0,
    ),
    'nfnet_F0w8_gelu': (lambda **kw: NFNet(F0W8, **kw), 'GELU', 0.0),
}


class Classifier(nn.Module):
    """Backbone, neck and ``head.fc``, as in an mm classifier."""

    def __init__(self, backbone: nn.Module, act: str, num_classes: int = 10) -> None:
        super().__init__()
        self.backbone = backbone
        tanh = dict(approximate='tanh') if act == 'GELU' else {}
        act_cfg = dict(type='GammaAct', act=act, **tanh)
        self.neck = ReLUNeck(backbone.feat_dim, act_cfg=act_cfg)
        self.head = nn.Module()
        self.head.fc = nn.Linear(backbone.feat_dim, num_classes)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        (pool,) = self.neck(self.backbone(x))
        return dict(pool=pool, logits=self.head.fc(pool))


def build(case: str, **kwargs) -> Classifier:
    make, act, _ = CASES[case]
    return Classifier(make(**kwargs), act).eval()


def arrays(case: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f'{case}.npz') as archive:
        return {name: archive[name] for name in archive.files}
