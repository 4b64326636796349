"""Exported, traced and quantized networks give the outputs of the original networks."""

import io
import warnings

import pytest
import torch
from torch import nn

from nf_plugins.layers import PWSConv2d, SameConv2d, ScaledWSConv2d
from nf_plugins.models import NFResNet

from ..conftest import relative_error, sample
from .common import NETWORKS, build, images

SIZES = [(64, 64), (65, 65), (96, 32), (63, 70)]
FORMS = ('NFResNet, ECA', 'NFResNet, SiLU', 'NFResNet, symmetric')
QUICK = ('NFResNet', 'NFNet', 'PWSResNet', 'FixupResNet')
PLAIN = ('ResNetV2', 'SkipInitResNet', 'FixupResNet')
"""They have nothing to fold."""


def session(program: bytes):
    onnxruntime = pytest.importorskip('onnxruntime')
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(program, options)


def check_onnx(net: nn.Module, sizes: list, dynamo: bool, free: bool, channels: int = 3) -> None:
    buffer, x = io.BytesIO(), images(*sizes[0])[:, :channels]
    names = dict(input_names=['x'], output_names=['y'])
    if dynamo:
        dims = {axis: torch.export.Dim(f'd{axis}') for axis in (0, 2, 3)}
        names.update(dynamic_shapes=(dims,) if free else None, verbose=False)
    elif free:
        names['dynamic_axes'] = dict(x=[0, 2, 3])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the exporters' own
        program = torch.onnx.export(net, (x,), None if dynamo else buffer, dynamo=dynamo, **names)
    if dynamo:
        program.save(buffer)
    run = session(buffer.getvalue())
    for size in sizes:
        x = images(*size)[:, :channels]
        (found,) = run.run(None, dict(x=x.numpy()))
        expected = net(x)
        expected = expected if isinstance(expected, torch.Tensor) else expected[0]
        assert relative_error(torch.from_numpy(found), expected) < 1e-5, size


@pytest.mark.parametrize('free', [False, True])
@pytest.mark.parametrize('name', QUICK)
def test_onnx_by_tracing(name, free):
    check_onnx(build(name, folded=True), SIZES if free else SIZES[:1], False, free)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'folded'),
    sample(
        [
            *((name, True) for name in NETWORKS if name not in (*FORMS, *QUICK)),
            *((name, False) for name in NETWORKS if name not in (*FORMS, *PLAIN)),
        ],
        lambda case: case[0] == 'NFResNet, SE' or case == ('PWSResNet', False),
    ),
)
def test_onnx_by_tracing_of_every_network(name, folded):
    check_onnx(build(name, folded), SIZES[1:2], False, False)
    check_onnx(build(name, folded), SIZES, False, True)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')  # of the exporter
@pytest.mark.parametrize(
    ('name', 'folded'),
    sample(
        [
            *((name, True) for name in NETWORKS if name not in (*FORMS, 'NFResNet')),
            ('NFResNet', False),  # one network of each standardized layer
            ('PWSResNet', False),
        ],
        [('NFNet', True), ('PWSResNet', False)].__contains__,
    ),
)
def test_onnx_by_export(name, folded):
    """Of a NF-ResNet: folded, in the next test."""
    check_onnx(build(name, folded), SIZES[1:2], True, False)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')  # of the exporter
def test_onnx_of_any_size_by_export():
    check_onnx(build('NFResNet', folded=True), SIZES, True, True)


@pytest.mark.parametrize(
    'conv',
    [
        lambda: ScaledWSConv2d(3, 8, 3, stride=2, padding='same'),
        lambda: ScaledWSConv2d(3, 6, 3, groups=3, gain_init=None, eps_mode='add'),
        lambda: PWSConv2d(3, 8, 3, padding=1),
        lambda: SameConv2d(3, 8, (3, 2), stride=(2, 3), dilation=(2, 1)),
        lambda: SameConv2d(3, 8, 2, stride=4),
    ],
)
def test_onnx_of_a_layer(conv):
    check_onnx(conv().eval().requires_grad_(False), [(9, 9), (8, 7), (6, 12)], False, True)


@pytest.mark.slow
@pytest.mark.parametrize('folded', [True, False])
@pytest.mark.parametrize('name', NETWORKS)
def test_a_trace_holds_for_every_size(name, folded):
    net = build(name, folded)
    with warnings.catch_warnings():
        if name != 'PWSResNet':  # the group norm of PyTorch looks at sizes
            warnings.simplefilter('error', torch.jit.TracerWarning)
        else:
            warnings.simplefilter('ignore', torch.jit.TracerWarning)
        traced = torch.jit.trace(net, images(64, 64), check_trace=False)
    for size in SIZES:
        x = images(*size)
        assert relative_error(traced(x)[0], net(x)[0]) < 1e-5, size


@pytest.mark.parametrize('name', NETWORKS)
def test_fx_holds_for_every_size(name):
    net = build(name, folded=True)
    graph = torch.fx.symbolic_trace(net)
    for size in SIZES:
        x = images(*size)
        assert relative_error(graph(x)[0], net(x)[0]) < 1e-6, size


@pytest.mark.slow
@pytest.mark.parametrize('name', NETWORKS)
def test_feature_extractor(name):
    """Any value can be asked for: none is overwritten later. Tracing is in both modes."""
    extraction = pytest.importorskip('torchvision.models.feature_extraction')
    net = build(name, folded=True, drop_path_rate=0.5, with_cp=True)
    nodes = [m for m, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # stochastic depth is part of training alone
        known = extraction.get_graph_node_names(net)[1]
        nodes = [node for node in nodes if node in known]  # others consist of several nodes
        assert nodes
        extractor = extraction.create_feature_extractor(net, nodes)
    seen = {}
    for node in nodes:
        module = net.get_submodule(node)
        module.register_forward_hook(lambda m, a, out, n=node: seen.update({n: out.clone()}))
    x = images(64, 64)
    net(x)
    for node, value in extractor(x).items():
        torch.testing.assert_close(value, seen[node], msg=node)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['NFResNet', 'NFRegNet', 'PWSResNet'])
def test_fx_graph_mode_quantization(name):
    """7 bits of each activation, 8 of each weight, in 14 layers or more."""
    fx = pytest.importorskip('torch.ao.quantization.quantize_fx')
    from torch.ao.quantization import get_default_qconfig_mapping

    net = build(name, folded=True)
    engine = torch.backends.quantized.engine
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # deprecated in favour of PT2E
        prepared = fx.prepare_fx(net, get_default_qconfig_mapping(engine), images(64, 64))
        for size in SIZES:
            prepared(images(*size))
        quantized = fx.convert_fx(prepared)
    ops = [str(node.target) for node in quantized.graph.nodes]
    convs = sum(isinstance(module, nn.Conv2d) for module in net.modules())
    kinds = [m for m in quantized.modules() if 'quantized' in type(m).__module__]
    found = sum('Conv' in type(m).__name__ for m in kinds) + sum('conv2d' in op for op in ops)
    assert found == convs
    for size in SIZES:
        x = images(*size)
        assert relative_error(quantized(x)[0], net(x)[0]) < 0.2, size


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')  # of torchao
def test_pt2e_quantization():
    pytest.importorskip('torchao')
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    net, x = build('NFResNet', folded=True), images(64, 64)
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(net, (x,)).module(), quantizer)
    prepared(x)
    quantized = convert_pt2e(prepared)
    assert any('quantize' in str(node.target) for node in quantized.graph.nodes)
    assert relative_error(quantized(x)[0], net(x)[0]) < 0.1


@pytest.mark.parametrize(
    'make',
    [
        lambda: nn.Sequential(*(ScaledWSConv2d(3, 3, 3, gamma=1.7) for _ in range(3))),
        lambda: nn.Sequential(*(PWSConv2d(3, 3, 3, padding=1) for _ in range(3))),
        lambda: NFResNet(26, base_channels=8, skipinit=0.5),
    ],
)
def test_onnx_by_tracing_of_a_fresh_network(make):
    """Whose gains are equal, and which the exporter makes one."""
    check_onnx(make().eval(), SIZES[:1], False, False)
