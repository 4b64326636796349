"""Hooks, feature extraction and attribution."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from .case import Case, reference
from .table import REFUSED, Pairs, tool

FEATURES = 'Hooks, feature extraction, attribution'
relevance_tool = partial(tool, FEATURES, dtype=torch.float64)


def features(case: Case, found: dict[str, Tensor]) -> Pairs:
    return [(value, reference(case.net, case.x, name)) for name, value in found.items()]


@tool(FEATURES, 'forward hooks, forward pre-hooks, full backward hooks')
def hooks(case: Case) -> Pairs:
    seen = {}
    for name in ('conv1', 'conv2'):
        conv = case.net.get_submodule(name)
        conv.register_forward_pre_hook(lambda m, args, n=name: seen.update({f'{n}.in': args[0]}))
        conv.register_forward_hook(lambda m, args, out, n=name: seen.update({n: out}))
        conv.register_full_backward_hook(lambda m, i, o, n=name: seen.update({f'{n}.grad': i + o}))
    x, y = case.x.clone().requires_grad_(), case.x.double().requires_grad_()
    out = case.net(x)
    out.sum().backward()
    twin = case.twin.double()
    between = twin.conv1(y)
    expected = torch.autograd.grad(twin[1:](between).sum(), (y, between))
    return [
        (out, case.expected),
        *features(case, {name: seen[name] for name in ('conv1', 'conv2')}),
        (seen['conv2.in'], reference(case.net, case.x, 'act1')),
        *zip(seen['conv1.grad'], expected),
    ]


@tool(FEATURES, '`create_feature_extractor` of torchvision (and timm)', REFUSED)
def feature_extractor(case: Case) -> Pairs:
    create = pytest.importorskip('torchvision.models.feature_extraction').create_feature_extractor
    return features(case, create(case.net, ['conv1', 'conv2'])(case.x))


@tool(FEATURES, 'timm: `FeatureListNet`, `FeatureHookNet`')
def timm_features(case: Case) -> Pairs:
    timm = pytest.importorskip('timm.models._features')
    names, pairs = ['conv1', 'conv2'], []
    case.net.feature_info = timm.FeatureInfo(
        [dict(num_chs=n, reduction=1, module=name) for n, name in zip((8, 6), names)], (0, 1)
    )
    for kind in (timm.FeatureHookNet, timm.FeatureListNet):
        found = kind(copy.deepcopy(case.net), out_indices=(0, 1))(case.x)
        pairs += features(case, dict(zip(names, found)))
    return pairs


def relevance(case: Case, attribute: Callable[[nn.Module, Tensor], Tensor]) -> Pairs:
    """Return the attribution to the input or to a layer, for our network and for a plain one."""
    nets = [copy.deepcopy(net) for net in (case.net, case.twin)]
    return [tuple(attribute(net, case.x.clone().requires_grad_()) for net in nets)]


def zennit_attribution(make: Callable) -> Callable[[nn.Module, Tensor], Tensor]:
    def attribute(net: nn.Module, x: Tensor) -> Tensor:
        from zennit.attribution import Gradient

        with Gradient(net, make()) as attributor:
            return attributor(x, torch.eye(5, dtype=x.dtype)[[1, 3]])[1]

    return attribute


@relevance_tool('zennit: composites with LRP rules (`EpsilonPlusFlat`, ...)', REFUSED)
def zennit_rules(case: Case) -> Pairs:
    composites = pytest.importorskip('zennit.composites')
    makes = [
        composites.EpsilonPlusFlat,
        composites.EpsilonAlpha2Beta1,
        composites.ExcitationBackprop,
        lambda: composites.EpsilonGammaBox(low=-4.0, high=4.0),
    ]
    return [pair for make in makes for pair in relevance(case, zennit_attribution(make))]


@relevance_tool('zennit: the same with the canonizer `SequentialMergeBatchNorm`', REFUSED)
def zennit_merged(case: Case) -> Pairs:
    composites = pytest.importorskip('zennit.composites')
    from zennit.canonizers import SequentialMergeBatchNorm

    make = lambda: composites.EpsilonPlusFlat(canonizers=[SequentialMergeBatchNorm()])  # noqa: E731
    return relevance(case, zennit_attribution(make))


@relevance_tool('zennit: `GuidedBackprop`')
def zennit_gradients(case: Case) -> Pairs:
    composites = pytest.importorskip('zennit.composites')
    return relevance(case, zennit_attribution(composites.GuidedBackprop))


@relevance_tool('captum: `IntegratedGradients`, `DeepLift`, `LayerGradCam`')
def captum_gradients(case: Case) -> Pairs:
    attr = pytest.importorskip('captum.attr')
    methods = [
        lambda net, x: attr.IntegratedGradients(net).attribute(x, target=2, n_steps=8),
        lambda net, x: attr.DeepLift(net).attribute(x, target=2),
        lambda net, x: attr.LayerGradCam(net, net.conv2).attribute(x, target=2),
    ]
    return [pair for method in methods for pair in relevance(case, method)]


class Flattened(nn.Module):
    """The network without a layer that captum has no rule for."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.features, self.head = net[:-2], net.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


def captum_lrp(case: Case, by_hand: str | None) -> Pairs:
    attr = pytest.importorskip('captum.attr')
    rules = pytest.importorskip('captum.attr._utils.lrp_rules')

    def attribute(net: nn.Module, x: Tensor) -> Tensor:
        for module in net.modules():
            if isinstance(module, nn.ZeroPad2d):
                module.rule = rules.EpsilonRule()
            if by_hand and isinstance(module, nn.Conv2d):
                module.rule = getattr(rules, by_hand)()
        return attr.LRP(Flattened(net)).attribute(x, target=2)

    return relevance(case, attribute)


NO_RULE = 'has no rule defined'


@relevance_tool('captum: `LRP`', NO_RULE, same=NO_RULE)
def captum_default_rules(case: Case) -> Pairs:
    return captum_lrp(case, None)


@relevance_tool('captum: `LRP`, convolutions with `EpsilonRule` set')
def captum_epsilon(case: Case) -> Pairs:
    return captum_lrp(case, 'EpsilonRule')


@relevance_tool('captum: `LRP`, convolutions with `Alpha1_Beta0_Rule` set', (32.8, 44.2))
def captum_positive(case: Case) -> Pairs:
    return captum_lrp(case, 'Alpha1_Beta0_Rule')
