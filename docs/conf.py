"""The site of these documents: ``make docs``. Warnings are errors there."""

import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The package is the checkout's, and `site` holds what Sphinx needs of ours.
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "site")]

# Of Megatron, which the pages of the API import, about what only a GPU has.
warnings.filterwarnings("ignore", module="megatron")

project = "grove_megatron"
author = "the authors of grove_megatron"
copyright = f"{author}; Apache 2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "field_docstrings",
    "repository_links",
]
exclude_patterns = ["site", "pictures/*.py"]
# A name in a docstring that is nowhere is an error. Not looked up: names of others, whose
# inventories are on the network.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(torch|megatron|collections\.abc|pathlib|argparse)\..+")]
# Halves of annotations that Sphinx takes apart at their comma.
nitpick_ignore = [("py:class", "tuple[str"), ("py:class", "dict[str")]

# Markdown as GitHub reads it; ::: is for what GitHub need not understand.
myst_enable_extensions = ["colon_fence", "linkify"]
myst_linkify_fuzzy_links = False
myst_heading_anchors = 4

# -- is the beginning of a flag and no dash.
smartquotes = False

html_theme = "furo"
html_title = "grove_megatron"
html_static_path = ["site/static"]
html_css_files = ["site.css"]
html_copy_source = False
# `$` is no prompt here: nothing shown has one. A line that ends with \ is one command.
copybutton_line_continuation_character = "\\"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
