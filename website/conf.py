"""Sphinx's configuration of the site. ``python -m website`` writes the tree of pages that it reads."""

from __future__ import annotations

import framebus

project = "framebus"
author = "the authors of framebus"
version = release = framebus.__version__
html_title = f"framebus {release}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
source_suffix = {".md": "markdown"}

# Anchors of headings are those of code hosts, so that a link works in both places.
myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autoclass_content = "both"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 88

highlight_language = "none"  # of code blocks that name none
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#2457a6", "color-brand-content": "#2457a6"},
    "dark_css_variables": {"color-brand-primary": "#86b1f2", "color-brand-content": "#86b1f2"},
}
pygments_style = "friendly"
pygments_dark_style = "monokai"
