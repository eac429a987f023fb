"""How Sphinx builds the site; `docs/make_site.py` calls it."""

from __future__ import annotations

from tilelab.machine.version import __version__

project = "tilelab"
author = copyright = "the tilelab developers"  # noqa: A001 - Sphinx's word
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # a page may begin where GitHub's reader begins
default_role = "code"
html_theme = "furo"
html_title = "tilelab"
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
html_use_index = False
