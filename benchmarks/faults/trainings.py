"""Short trainings on scikit-learn's digits, good and bad, and what is said of their networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision
from timm.models.cait import Cait
from timm.models.convmixer import ConvMixer
from timm.models.convnext import ConvNeXt
from timm.models.mlp_mixer import MlpMixer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from nf_plugins.models import FixupResNet, NFRegNet, NFResNet, PWSResNet, ResNetV2
from nf_plugins.spp import analyze

from . import hand_written


class Classifier(nn.Module):
    """A backbone of ours with a linear head."""

    def __init__(self, backbone: nn.Module, channels: int) -> None:
        super().__init__()
        backbone.init_weights()
        self.backbone, self.head = backbone, nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.backbone(x)[-1]).mean((2, 3)))


SMALL = dict(in_channels=1, base_channels=8)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    'NF-ResNet': lambda: Classifier(NFResNet(26, **SMALL), 256),
    'NF-ResNet without SkipInit': lambda: Classifier(NFResNet(26, skipinit=False, **SMALL), 256),
    'ResNet-V2': lambda: Classifier(ResNetV2(26, **SMALL), 256),
    'PWS-ResNet': lambda: Classifier(PWSResNet(18, **SMALL), 64),
    'ViT': lambda: VisionTransformer(16, 4, 1, num_classes=10, embed_dim=48, depth=4, num_heads=3),
    'ConvNeXt': lambda: ConvNeXt(
        1, 10, depths=(1, 1, 3, 1), dims=(16, 32, 48, 64), patch_size=1, ls_init_value=1e-6
    ),
    'Mixer': lambda: MlpMixer(10, 16, 1, patch_size=4, num_blocks=4, embed_dim=48),
}

RECIPES: dict[str, dict[str, Any]] = {
    'good': dict(lr=2e-3, weight_decay=1e-4),
    'learning rate 500 times too large': dict(lr=1.0, weight_decay=0.0),
    'weight decay without end': dict(lr=2e-3, weight_decay=300.0),
    'SGD without warmup': dict(lr=30.0, weight_decay=0.0, sgd=True),
}
"""Name -> how a network is trained; all but the first are bad."""


def _densenet() -> nn.Module:
    net = torchvision.models.DenseNet(8, (2, 2, 2), 16, num_classes=10)
    net.features.conv0 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
    return net


HELD_OUT_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    'NF-RegNet': lambda: Classifier(
        NFRegNet(
            dict(base='b0', depths=(1, 2, 2, 1), width_mult=0.25, final_ratio=None), in_channels=1
        ),
        110,
    ),
    'Fixup': lambda: Classifier(FixupResNet(26, **SMALL), 256),
    'DenseNet': _densenet,
    'ResNet with group norm': lambda: hand_written.GroupNormNet(32, 4, channels=1, patch=2),
    'plain network': lambda: hand_written.PlainNet(16, 4, channels=1, classes=10),
    'CaiT': lambda: Cait(
        16, 4, 1, num_classes=10, embed_dim=48, depth=4, num_heads=3, init_values=1e-4
    ),
    'ConvMixer': lambda: ConvMixer(48, 4, 3, 2, in_chans=1, num_classes=10),
}
HELD_OUT_RECIPES: dict[str, dict[str, Any]] = {
    'good': dict(lr=1e-3, weight_decay=0.02),
    'learning rate 200 times too large': dict(lr=0.3, weight_decay=0.0),
    'SGD that diverges': dict(lr=10.0, weight_decay=0.0, sgd=True),
    'weight decay on everything': dict(lr=1e-3, weight_decay=500.0),
}


def digits() -> tuple[Tensor, Tensor]:
    """The images at 16x16, normalized, and their classes."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None]
    x = F.interpolate((x - x.mean()) / x.std(), (16, 16))
    return x, torch.tensor(data.target)


def train(net: nn.Module, recipe: dict[str, Any], steps: int = 120) -> float:
    """Train a network; return its accuracy on the last third of the digits."""
    x, y = digits()
    split = 2 * len(x) // 3
    options = {k: v for k, v in recipe.items() if k != 'sgd'}
    build = torch.optim.SGD if recipe.get('sgd') else torch.optim.AdamW
    optimizer = build(net.parameters(), **options)
    generator = torch.Generator().manual_seed(0)
    net.train()
    for _ in range(steps):
        index = torch.randint(split, (64,), generator=generator)
        loss = F.cross_entropy(net(x[index]), y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        return (net(x[split:]).argmax(1) == y[split:]).double().mean().item()


def trained(network: str, recipe: str) -> dict[str, Any]:
    """Train, and score what is said of the network afterwards, on the digits themselves."""
    torch.manual_seed(0)
    net = {**NETWORKS, **HELD_OUT_NETWORKS}[network]()
    recipes = HELD_OUT_RECIPES if network in HELD_OUT_NETWORKS else RECIPES
    accuracy = train(net, recipes[recipe])
    x = digits()[0][-32:]
    verdicts = analyze(net, x, state='trained').verdicts()
    return dict(
        network=network,
        recipe=recipe,
        accuracy=round(accuracy, 4),
        loud=[v['rule'] for v in verdicts if v['severity'] != 'info'],
        verdicts=[{k: v[k] for k in ('rule', 'severity', 'name', 'message')} for v in verdicts],
    )
