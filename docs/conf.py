"""Settings of the site; `make docs` builds it. It takes numbers and figures from `docs/runs`."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from pyro_ext import __version__  # noqa: E402

project = "pyro_ext"
author = "The pyro_ext authors"
copyright = author
release = version = __version__

# Pages in Markdown may use cards, grids, tabs and badges: https://sphinx-design.readthedocs.io
extensions = [
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx.ext.autodoc",
    "api_tables",
    "gallery_pages",
    "mathml",
]
if not tags.has("without_source"):  # noqa: F821  # pages of the source take half of the time
    extensions.append("sphinx.ext.viewcode")
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build", "runs", "gallery/notebooks", "gallery/scripts"]

html_theme = "furo"
pygments_dark_style = "a11y-dark"
html_title = f"pyro_ext {release}"
html_show_copyright = False
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["site.css"]
html_js_files = ["gallery.js"]
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#2a6f97", "color-brand-content": "#2a6f97"},
    "dark_css_variables": {"color-brand-primary": "#7fb8dc", "color-brand-content": "#7fb8dc"},
}

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # pages in full take hours; `python -m tests.pages --save` keeps them
copybutton_exclude = ".linenos, .gp, .go"

autodoc_typehints = "none"  # docstrings name the types
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}

# References to other projects cannot be checked without their inventories, which take a network.
nitpicky = True
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(arviz|ase|concurrent|collections|matplotlib|np|numpy|pyro|torch|typing|xarray)\..*",
    ),
    (
        r"py:class",
        r"Atoms|Axes|Console|Constraint|Executor|Fallback|GraphModule|MCMCKernel|SGMCMCKernel|Tensor|TorchDistribution",
    ),
]
