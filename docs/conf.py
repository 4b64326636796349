"""Settings of Sphinx. ``make docs`` builds the pages and the reference in ``work_dirs/docs``."""

import warnings

warnings.filterwarnings('ignore', 'Fail to import', UserWarning)  # a warning of mmcv-lite

from nf_plugins import __version__  # noqa: E402

project, release, html_title = 'nf_plugins', __version__, 'nf_plugins'
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.mathjax']
exclude_patterns = ['_build']
html_theme = 'alabaster'
html_theme_options = dict(fixed_sidebar=True, page_width='1100px')
autodoc_default_options = {'members': True, 'show-inheritance': True}
autodoc_inherit_docstrings = False
autodoc_typehints = 'signature'
napoleon_use_rtype = False
myst_heading_anchors = 3
# Warnings about links to pages outside this folder. A test checks that linked files exist.
suppress_warnings = ['myst.xref_missing']
