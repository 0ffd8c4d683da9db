"""Settings of the site; `make docs` builds it."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TQDM_DISABLE", "1")

import gallery_source  # noqa: E402
from sphinx_gallery.sorting import FunctionSortKey  # noqa: E402

from pyro_ext import __version__, tutorials  # noqa: E402
from pyro_ext.reproduction import SMOKE_VARIABLE, Report  # noqa: E402

SMOKE = os.environ.get(SMOKE_VARIABLE, "") not in ("", "0")

project = "pyro_ext"
author = "The pyro_ext authors"
copyright = author
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
exclude_patterns = ["_build", "sg_execution_times.rst", "gallery/**/sg_execution_times.rst"]

html_theme = "furo"
html_title = f"pyro_ext {release}"
html_show_copyright = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # docstrings name the types
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}

# References to other projects cannot be checked without their inventories, which take a network.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(arviz|ase|concurrent|collections|matplotlib|np|numpy|pyro|torch|typing|xarray)\..*"),
    (
        r"py:class",
        r"Atoms|Axes|Console|Constraint|Executor|Fallback|GraphModule|MCMCKernel|SGMCMCKernel|Tensor|TorchDistribution",
    ),
]

# The site shows a claim that fails, with its reason, and does not fail for it.
Report.exit = lambda self: None  # type: ignore[method-assign]

examples = HERE / "_build" / "tutorials"
gallery_source.write_examples(Path(tutorials.__path__[0]), examples, SMOKE)
sphinx_gallery_conf = {
    "examples_dirs": str(examples),
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "ignore_pattern": r"(^|/)_",
    "within_subsection_order": FunctionSortKey(gallery_source.page_order, "reading order"),
    "image_scrapers": (gallery_source.SavedFigures(),),
    "reset_modules": ("matplotlib", gallery_source.begin_page),
    "capture_repr": (),
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
    "write_computation_times": False,
}
suppress_warnings = ["config.cache"]  # settings of the gallery hold functions
