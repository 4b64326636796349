"""The import paths of version 0.1.0 lead to the same objects as those of today."""

import importlib
import pickle

import pytest

BACKBONES = 'nf_plugins.models.backbones'
STANDARDIZATION = 'nf_plugins.functional.standardization'
MOVED = {
    f'{BACKBONES}.base': {
        'residual_block': ['ResidualBlock', 'activate', 'add_shortcut', 'may_overwrite'],
        'staged': ['StagedBackbone'],
    },
    f'{BACKBONES}.nf_base': {
        'conv_builder': ['ConvBuilder'],
        'nf_arch': ['MOST_BLOCKS', 'NFArch', 'override_arch', 'resolve_arch'],
        'nf_backbone': ['NFBackbone'],
        'nf_block': ['NFBlock', 'make_attention'],
        'nf_stem': ['NFStem', 'STEMS', 'scaled'],
    },
    'nf_plugins.functional.weight_standardization': {
        'standardization': ['EPS', 'parametric_standardize_weight', 'scaled_standardize_weight'],
    },
    STANDARDIZATION: {
        'standardization.conv': ['standardized_conv2d', 'standardized_weight'],
        'standardization.formula': ['standardize'],
    },
    'nf_plugins.functional.cpu_standardization': {
        'standardization.kernels_c': ['forward', 'backward', 'supports'],
    },
    'nf_plugins.functional.triton_standardization': {
        'standardization.kernels_triton': ['forward', 'backward', 'supports'],
    },
    'nf_plugins.layers.standardized_conv': {
        'scaled_ws': ['ScaledWSConv2d'],
        'pws': ['PWSConv2d'],
    },
    'nf_plugins.spp.trace': {
        'graph': ['Node', 'Residual', 'Tracer', 'Unit', 'find_residuals', 'tracing'],
        'graph.ops': ['ACTIVATIONS', 'ADDITIONS', 'CONVOLUTIONS', 'MOVES', 'NORMS'],
        'graph.classify': ['classify'],
        'graph.residuals': ['is_inside', 'walk_back_gains'],
    },
}


@pytest.mark.parametrize('old', MOVED)
def test_an_old_path_leads_to_the_same_object(old):
    if 'triton' in old:
        pytest.importorskip('triton')
    package = old.rpartition('.')[0]
    for new, names in MOVED[old].items():
        for name in names:
            found = getattr(importlib.import_module(old), name)
            assert found is getattr(importlib.import_module(f'{package}.{new}'), name)


def test_a_pickled_network_of_version_0_1_0_is_found():
    """Its pickle names the classes by the paths of that version."""
    for name in ('NFArch', 'NFBlock', 'NFStem'):
        pickled = f'c{BACKBONES}.nf_base\n{name}\n.'.encode()
        assert pickle.loads(pickled).__name__ == name
