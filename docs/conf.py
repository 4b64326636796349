"""Sphinx: ``make docs`` builds these pages and the reference into ``work_dirs/docs``."""

import warnings

warnings.filterwarnings('ignore', 'Fail to import', UserWarning)  # of mmcv-lite

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
# Of links to pages outside this folder; whether links lead anywhere is a test's business.
suppress_warnings = ['myst.xref_missing']
