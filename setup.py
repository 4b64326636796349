"""Package nfplugins: the import name is nf_plugins.

The wheel carries configs, tools and model-index.yml under ``nf_plugins/.mim``,
where `mim` looks for them, and ``nf_plugins/configs``, where configs of mmengine's new style
(``with read_base()``) look for theirs. The distribution has no underscore in its name, as mim
takes the first folder of the wheel's sorted record for the package: `nf_plugins`
sorts before `nfplugins-*.dist-info`.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
MIM = ('configs', 'tools', 'model-index.yml')


def version():
    scope = {}
    exec((ROOT / 'nf_plugins/version.py').read_text(), scope)
    return scope['__version__']


def requirements(name):
    lines = (ROOT / f'requirements/{name}.txt').read_text().splitlines()
    return [line for line in lines if line and not line.startswith(('#', '-'))]


class BuildWithMim(build_py):
    """Copy what mim needs into the built package."""

    def run(self):
        super().run()
        if self.editable_mode:  # config paths work there, names do not
            return
        target = Path(self.build_lib) / 'nf_plugins' / '.mim'
        shutil.rmtree(target, ignore_errors=True)
        ignore = shutil.ignore_patterns('__pycache__', '*.pyc')
        for name in MIM:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, target / name, ignore=ignore)
            else:
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target / name)
        write_new_style(target / 'configs', target.parent / 'configs')


# Without imports: mmengine 0.10 puts placeholders in their places.
NEW_STYLE = """path = __import__('pathlib').Path(__file__).parents[2] / '.mim/configs/{name}'
globals().update(__import__('mmengine.config').config.Config.fromfile(path))
del path
"""


def write_new_style(configs, target):
    """Write a config of mmengine's new style for each one, in a file that can be imported."""
    shutil.rmtree(target, ignore_errors=True)
    for path in configs.rglob('*.py'):
        name = path.relative_to(configs)
        if name.parts[0] != '_base_':
            module = target / name.parent / f'{re.sub("[-.]", "_", name.stem)}.py'
            module.parent.mkdir(parents=True, exist_ok=True)
            module.write_text(NEW_STYLE.format(name=name.as_posix()))


EXTRAS = {
    name: requirements(name) for name in ('digits', 'report', 'hub', 'export', 'video', 'tests')
}
EXTRAS['mm'] = requirements('mminstall')

setup(
    name='nfplugins',
    version=version(),
    description='Normalizer-free networks and signal propagation plots for OpenMMLab',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['nf_plugins', 'nf_plugins.*']),
    package_data={
        'nf_plugins': ['py.typed'],
        'nf_plugins.functional.standardization': ['*.c'],
    },
    python_requires='>=3.10',
    install_requires=requirements('runtime'),
    extras_require=EXTRAS,
    cmdclass={'build_py': BuildWithMim},
    zip_safe=False,
    classifiers=[
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.11',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
