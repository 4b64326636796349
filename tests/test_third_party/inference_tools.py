"""Fusers, counters, exporters, tracers and quantizers."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, fuse_conv_bn, get_model_complexity_info
from mmengine.analysis import FlopAnalyzer
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval_for_single_model
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn.utils import fuse_conv_bn_eval, fuse_conv_bn_weights

import nf_plugins

from .case import Case, reference
from .table import REFUSED, Pairs, outputs, tool

FUSION = 'Fusion of batch norms, re-parameterization'
STRIDED = "padding='same' is not supported for strided convolutions"
NO_FUSER = 'did not find fuser method'


@tool(FUSION, '`mmcv.cnn.fuse_conv_bn`', REFUSED)
def mmcv_fusion(case: Case) -> Pairs:
    return outputs(case, fuse_conv_bn(case.net))


@tool(FUSION, '`torch.nn.utils.fuse_conv_bn_eval`', REFUSED)
def torch_fusion(case: Case) -> Pairs:
    net = case.net
    net.conv1, net.bn1 = fuse_conv_bn_eval(net.conv1, net.bn1), nn.Identity()
    net.conv2, net.bn2 = fuse_conv_bn_eval(net.conv2, net.bn2), nn.Identity()
    return outputs(case, net)


@tool(FUSION, '`ConvModule.turn_on_efficient_conv_bn_eval` of mmcv', REFUSED)
def efficient_conv_module(case: Case) -> Pairs:
    net, pairs, x = case.net, [], case.x
    for conv, bn, act in (('conv1', 'bn1', 'act1'), ('conv2', 'bn2', 'act2')):
        module = ConvModule.create_from_conv_bn(net.get_submodule(conv), net.get_submodule(bn))
        assert module.efficient_conv_bn_eval_forward is not None
        x = module.eval()(x).relu()
        pairs.append((x, reference(net, case.x, act)))
    return pairs


@tool(
    FUSION,
    '`EfficientConvBNEvalHook` of mmengine',
    REFUSED,
    same='<built-in method conv2d',
)
def efficient_model(case: Case) -> Pairs:
    turn_on_efficient_conv_bn_eval_for_single_model(case.net)
    return outputs(case, case.net)


PARTS = [['conv1', 'bn1', 'act1'], ['conv2', 'bn2']]


@tool(FUSION, '`torch.ao.quantization.fuse_modules`', NO_FUSER, same=NO_FUSER)
def eager_fusion(case: Case) -> Pairs:
    return outputs(case, quantization.fuse_modules(case.net, PARTS))


@tool(FUSION, '`torch.ao.quantization.fuse_modules_qat`', NO_FUSER, same=NO_FUSER)
def eager_fusion_for_training(case: Case) -> Pairs:
    return outputs(case, quantization.fuse_modules_qat(case.net.train(), PARTS).eval())


@tool(FUSION, '`torch.fx.experimental.optimization.fuse`', REFUSED)
def fx_fusion(case: Case) -> Pairs:
    from torch.fx.experimental.optimization import fuse

    return outputs(case, fuse(case.net))


@tool(FUSION, '`torch.jit.freeze`, `torch.jit.optimize_for_inference`')
def jit_freezing(case: Case) -> Pairs:
    traced = torch.jit.trace(case.net, case.x)
    return outputs(case, torch.jit.optimize_for_inference(torch.jit.freeze(traced)))


@tool(
    FUSION,
    '`torch.utils.mkldnn.to_mkldnn`',
    REFUSED,
    same="'padding' (position 2) must be tuple of ints, not str",
)
def to_mkldnn(case: Case) -> Pairs:
    from torch.utils.mkldnn import to_mkldnn

    net = to_mkldnn(case.net)
    return outputs(case, lambda x: net(x.to_mkldnn()).to_dense())


def statistics(module: nn.Module) -> nn.Module:
    """Give batch norms the statistics of a training."""
    for bn in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(bn.running_mean, -0.5, 0.5)
        nn.init.uniform_(bn.running_var, 0.5, 2)
    return module.eval()


def merged(case: Case, block: nn.Module, merge: Callable[[nn.Module], nn.Module | None]) -> Pairs:
    """A block of branches with batch norms, before and after they are merged."""
    nf_plugins.convert(block, case.layer)
    x, net = torch.randn(2, 6, 5, 5), nn.Sequential(statistics(block))
    with torch.no_grad():
        expected, norms = net(x), count_norms(net)
        if case.folded:
            nf_plugins.fold(net)
        net = merge(net) or net
        assert count_norms(net) < norms
        return [(net(x), expected)]


def count_norms(net: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())


def deploy(net: nn.Module) -> None:
    net[0].switch_to_deploy()


@tool(FUSION, '`switch_to_deploy()` of RepVGG in mmpretrain', REFUSED)
def repvgg(case: Case) -> Pairs:
    backbones = pytest.importorskip('mmpretrain.models.backbones')
    return merged(case, backbones.repvgg.RepVGGBlock(6, 6), deploy)


@tool(FUSION, '`switch_to_deploy()` of MobileOne in mmpretrain', REFUSED)
def mobileone(case: Case) -> Pairs:
    backbones = pytest.importorskip('mmpretrain.models.backbones')
    return merged(case, backbones.mobileone.MobileOneBlock(6, 6, 3, num_convs=2), deploy)


@tool(FUSION, '`merge_kernel()` of RepLKNet in mmpretrain', REFUSED)
def replknet(case: Case) -> Pairs:
    backbones = pytest.importorskip('mmpretrain.models.backbones')
    block = backbones.replknet.ReparamLargeKernelConv(6, 6, 5, 1, 1, 3)
    return merged(case, block, lambda net: net[0].merge_kernel())


@tool(FUSION, 'timm: `reparameterize_model`, of RepVGG', REFUSED)
def timm_repvgg(case: Case) -> Pairs:
    models = pytest.importorskip('timm.models')
    return merged(case, models.byobnet.RepVggBlock(6, 6), models.reparameterize_model)


@tool(FUSION, 'timm: `reparameterize_model`, of LeViT and RepViT (`fuse()`)', REFUSED)
def timm_fuse(case: Case) -> Pairs:
    models = pytest.importorskip('timm.models')
    return merged(case, models.levit.ConvNorm(6, 6, 3, 1, 1), models.reparameterize_model)


@tool(FUSION, 'timm: `reparameterize_model`, of RepGhostNet', (0.24, 0.368))
def timm_repghost(case: Case) -> Pairs:
    models = pytest.importorskip('timm.models')
    return merged(case, models.repghost.RepGhostModule(6, 6), models.reparameterize_model)


@tool(FUSION, 'Code of your own that computes from `conv.weight`', (0.54, 0.63), same=STRIDED)
def own_code(case: Case) -> Pairs:
    net, pairs = case.net, []
    for name, before in (('conv1', None), ('conv2', 'act1')):
        conv, bn = net.get_submodule(name), net.get_submodule(name.replace('conv', 'bn'))
        x = case.x if before is None else reference(net, case.x, before).float()
        rows = bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
        weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *rows)
        found = F.conv2d(x, weight, bias, conv.stride, conv.padding)
        pairs.append((found, reference(net, case.x, name.replace('conv', 'bn'))))
    return pairs


@tool(FUSION, 'Code of your own that sets a new `conv.weight`', REFUSED)
def own_weight(case: Case) -> Pairs:
    """As channel pruning, equalization and quantization tools do."""
    for conv in (case.net.conv1, case.net.conv2):
        conv.weight = nn.Parameter(conv.weight.detach().clone())
    return outputs(case, case.net)


COUNTING = 'Counters of multiply-adds'


def macs_by_hand(case: Case) -> dict[str, int]:
    """Of one image of the case: each output takes one multiply-add per weight of its filter."""
    first, second = reference(case.net, case.x, 'conv1'), reference(case.net, case.x, 'conv2')
    convs = first[0].numel() * 3 * 9 + second[0].numel() * 8 * 9
    return dict(conv=convs, linear=6 * 5)


def by_operator(case: Case, analyse: Callable) -> Pairs:
    """Of analyses that follow operations: each kind, and the sum as that of a plain network."""
    found, twin = (analyse(net, case.x[:1]) for net in (case.net, case.twin))
    pairs = [(found.by_operator()[op], macs) for op, macs in macs_by_hand(case).items()]
    return [*pairs, (found.total(), twin.total())]


@tool(COUNTING, '`mmengine.analysis`: `get_model_complexity_info`, `FlopAnalyzer`')
def mmengine_counter(case: Case) -> Pairs:
    return by_operator(case, FlopAnalyzer)


@tool(COUNTING, '`fvcore.nn.FlopCountAnalysis`')
def fvcore_counter(case: Case) -> Pairs:
    return by_operator(case, pytest.importorskip('fvcore.nn').FlopCountAnalysis)


@tool(COUNTING, '`torch.utils.flop_counter.FlopCounterMode`')
def torch_counter(case: Case) -> Pairs:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        case.net(case.x[:1])
    return [(counter.get_total_flops(), 2 * sum(macs_by_hand(case).values()))]


@tool(COUNTING, '`torchinfo.summary`')
def torchinfo_summary(case: Case) -> Pairs:
    summary = pytest.importorskip('torchinfo').summary
    found, twin = (summary(net, input_data=case.x, verbose=0) for net in (case.net, case.twin))
    params = sum(p.numel() for p in case.net.parameters())
    return [(found.total_mult_adds, twin.total_mult_adds), (found.total_params, params)]


@tool(COUNTING, '`thop.profile`', (0.89, 0.89), same=(0.32, 0.32))
def thop_counter(case: Case) -> Pairs:
    profile = pytest.importorskip('thop').profile
    return [tuple(profile(net, (case.x[:1],), verbose=False)[0] for net in (case.net, case.twin))]


@tool(COUNTING, '`mmcv.cnn.get_model_complexity_info`', (0.92, 0.92), same=(0.33, 0.33))
def mmcv_counter(case: Case) -> Pairs:
    options = dict(print_per_layer_stat=False, as_strings=False)
    nets, shape = (case.net, case.twin), tuple(case.x.shape[1:])
    return [tuple(get_model_complexity_info(net, shape, **options)[0] for net in nets)]


@tool(COUNTING, '`ptflops.get_model_complexity_info`', (0.89, 0.89), same=(0.32, 0.32))
def ptflops_counter(case: Case) -> Pairs:
    count = pytest.importorskip('ptflops').get_model_complexity_info
    options = dict(print_per_layer_stat=False, as_strings=False)
    nets, shape = (case.net, case.twin), tuple(case.x.shape[1:])
    return [tuple(count(net, shape, **options)[0] for net in nets)]


@tool(COUNTING, '`torch_pruning.utils.count_ops_and_params`', (0.92, 0.92), same=(0.33, 0.33))
def pruning_counter(case: Case) -> Pairs:
    count = pytest.importorskip('torch_pruning').utils.count_ops_and_params
    return [tuple(count(net, case.x[:1])[0] for net in (case.net, case.twin))]


EXPORT = 'Exporters, tracers, compilers'


def onnxruntime_outputs(case: Case, program: bytes) -> Pairs:
    onnxruntime = pytest.importorskip('onnxruntime')
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(program, options)
    (found,) = session.run(None, dict(x=case.x.numpy()))
    return [(torch.from_numpy(found), case.expected)]


@tool(EXPORT, '`torch.onnx.export(dynamo=False)`, run by onnxruntime')
def onnx_by_tracing(case: Case) -> Pairs:
    buffer = io.BytesIO()
    torch.onnx.export(case.net, (case.x,), buffer, dynamo=False, input_names=['x'])
    return onnxruntime_outputs(case, buffer.getvalue())


@tool(EXPORT, '`torch.onnx.export(dynamo=True)`, run by onnxruntime', slow=True)
def onnx_by_export(case: Case) -> Pairs:
    pytest.importorskip('onnxscript')
    options = dict(dynamo=True, input_names=['x'], verbose=False)
    buffer = io.BytesIO()
    torch.onnx.export(case.net, (case.x,), **options).save(buffer)
    return onnxruntime_outputs(case, buffer.getvalue())


@tool(EXPORT, '`torch.export.export`')
def export(case: Case) -> Pairs:
    return outputs(case, torch.export.export(case.net, (case.x,)).module())


@tool(EXPORT, '`torch.jit.trace`, run at another size, too')
def jit_trace(case: Case) -> Pairs:
    traced, other = torch.jit.trace(case.net, case.x), torch.randn(1, 3, 8, 7)
    return [*outputs(case, traced), (traced(other), reference(case.net, other))]


@tool(EXPORT, '`torch.jit.script`', REFUSED)
def jit_script(case: Case) -> Pairs:
    return outputs(case, torch.jit.script(case.net))


@tool(EXPORT, '`torch.fx.symbolic_trace`', REFUSED)
def fx_trace(case: Case) -> Pairs:
    return outputs(case, torch.fx.symbolic_trace(case.net))


@tool(EXPORT, '`torch.fx.experimental.proxy_tensor.make_fx`')
def make_fx(case: Case) -> Pairs:
    from torch.fx.experimental.proxy_tensor import make_fx

    return outputs(case, make_fx(case.net)(case.x))


@tool(EXPORT, '`torch.compile(fullgraph=True)`, forward and backward', slow=True)
def compiled(case: Case) -> Pairs:
    torch.compiler.reset()
    x, y = case.x.clone().requires_grad_(), case.x.double().requires_grad_()
    out = torch.compile(case.net, backend='aot_eager', fullgraph=True)(x)
    (found,) = torch.autograd.grad(out.sum(), x)
    (expected,) = torch.autograd.grad(case.twin.double()(y).sum(), y)
    return [(out, case.expected), (found, expected)]


@tool(EXPORT, '`torch.compile` to C++, with freezing and `efficient_conv_bn_eval`', slow=True)
def inductor(case: Case) -> Pairs:
    from torch._inductor import config

    torch.compiler.reset()
    with config.patch(freezing=True, efficient_conv_bn_eval_fx_passes=True):
        return outputs(case, torch.compile(case.net))


QUANTIZATION = 'Quantization, low precision'
BITS = 0.04
"""What 8 bits cost here. Ours, and a network of plain convolutions, are rounded alike."""


def quantized(case: Case, quantize: Callable[[nn.Module], Callable[[Tensor], Tensor]]) -> Pairs:
    with torch.no_grad():
        found, twin = (quantize(net)(case.x) for net in (case.net, case.twin))
    return [(found, twin), (found, case.expected)]


@tool(
    QUANTIZATION,
    'FX graph mode: `prepare_fx`, `convert_fx`',
    REFUSED,
    tolerance=BITS,
    slow=True,
)
def fx_quantization(case: Case) -> Pairs:
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    def quantize(net: nn.Module) -> nn.Module:
        mapping = quantization.get_default_qconfig_mapping(torch.backends.quantized.engine)
        prepared = prepare_fx(net, mapping, case.x)
        prepared(case.x)
        result = convert_fx(prepared)
        assert not any(type(m) in (nn.Conv2d, nn.BatchNorm2d) for m in result.modules())
        return result

    return quantized(case, quantize)


@tool(QUANTIZATION, 'FX graph mode for training: `prepare_qat_fx`', REFUSED, tolerance=BITS)
def fx_quantization_aware(case: Case) -> Pairs:
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx

    def quantize(net: nn.Module) -> nn.Module:
        mapping = quantization.get_default_qat_qconfig_mapping(torch.backends.quantized.engine)
        prepared = prepare_qat_fx(net.train(), mapping, case.x).eval()
        prepared(case.x)
        return convert_fx(prepared)

    return quantized(case, quantize)


@tool(
    QUANTIZATION,
    'eager mode: `prepare`, `convert`',
    REFUSED,
    same='Input type (c10::quint8) and bias type (float) should be the same',
    tolerance=BITS,
)
def eager_quantization(case: Case) -> Pairs:
    def quantize(net: nn.Module) -> nn.Module:
        net.bn1, net.bn2 = nn.Identity(), nn.Identity()
        wrapped = quantization.QuantWrapper(net).eval()
        wrapped.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
        prepared = quantization.prepare(wrapped)
        prepared(case.x)
        return quantization.convert(prepared)

    return quantized(case, quantize)[:1]


@tool(
    QUANTIZATION,
    'PT2E of torchao: `prepare_pt2e`, `convert_pt2e`',
    'Expected get_attr node, got call_function',
    tolerance=BITS,
    slow=True,
)
def pt2e_quantization(case: Case) -> Pairs:
    pytest.importorskip('torchao')
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    def quantize(net: nn.Module) -> Callable:
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(torch.export.export(net, (case.x,)).module(), quantizer)
        prepared(case.x)
        return convert_pt2e(prepared)

    return quantized(case, quantize)


@tool(QUANTIZATION, '`quantize_dynamic`', tolerance=BITS)
def dynamic_quantization(case: Case) -> Pairs:
    kinds = {nn.Linear, nn.Conv2d}
    return quantized(case, lambda net: quantization.quantize_dynamic(net, kinds, torch.qint8))


@tool(QUANTIZATION, 'torchao: `quantize_` with `Int8WeightOnlyConfig`', tolerance=BITS)
def torchao_weights(case: Case) -> Pairs:
    ao = pytest.importorskip('torchao.quantization')

    def quantize(net: nn.Module) -> nn.Module:
        ao.quantize_(net, ao.Int8WeightOnlyConfig())
        return net

    return quantized(case, quantize)


@tool(
    QUANTIZATION,
    'the same with a `filter_fn` that takes convolutions',
    REFUSED,
    'unimplemented operator',
    tolerance=BITS,
)
def torchao_convolutions(case: Case) -> Pairs:
    ao = pytest.importorskip('torchao.quantization')

    def quantize(net: nn.Module) -> nn.Module:
        kinds = lambda module, name: isinstance(module, nn.Conv2d)  # noqa: E731
        ao.quantize_(net, ao.Int8WeightOnlyConfig(), kinds)
        return net

    return quantized(case, quantize)


@tool(
    QUANTIZATION,
    '`torch.ao.quantization._equalize`',
    'module type not supported',
    same='module type not supported',
)
def equalization(case: Case) -> Pairs:
    from torch.ao.quantization._equalize import equalize

    case.net.bn1, case.net.bn2 = nn.Identity(), nn.Identity()
    expected = reference(case.net, case.x)
    net = equalize(case.net, [['conv1', 'conv2']])
    return [(net(case.x), expected)]


@tool(QUANTIZATION, '`half()`, `bfloat16()`, `torch.autocast`', tolerance=0.03)
def low_precision(case: Case) -> Pairs:
    pairs = []
    for dtype in (torch.float16, torch.bfloat16):
        low = copy.deepcopy(case.net).to(dtype)
        pairs += outputs(case, lambda x, net=low, to=dtype: net(x.to(to)))
        with torch.autocast('cpu', dtype):
            pairs += outputs(case, case.net)
    return pairs
