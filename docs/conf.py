"""The site of these documents: ``make docs``. Warnings are errors there."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The package is the checkout's, and `site` holds what Sphinx needs of ours.
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "site")]

project = "grove_megatron"
author = "the authors of grove_megatron"
copyright = f"{author}; Apache 2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "repository_links",
]
exclude_patterns = ["site", "pictures/*.py"]
nitpicky = True

# Markdown as GitHub reads it; ::: is for what GitHub need not understand.
myst_enable_extensions = ["colon_fence", "linkify"]
myst_linkify_fuzzy_links = False
myst_heading_anchors = 4

html_theme = "furo"
html_title = "grove_megatron"
html_static_path = ["site/static"]
html_css_files = ["site.css"]
html_copy_source = False
# `$` is no prompt here: nothing shown has one. A line that ends with \ is one command.
copybutton_line_continuation_character = "\\"
