"""The tutorials as sphinx-gallery takes them.

Tutorials are scripts of percent cells with text in Markdown, as Jupyter and editors read them;
sphinx-gallery reads reStructuredText. Pandoc turns one into the other.
"""

import os
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pypandoc

from pyro_ext.reproduction import FIGURES_VARIABLE as FIGURES

__all__ = ["SavedFigures", "begin_page", "page_order", "write_examples"]

# Pages in the order in which to read them; others follow by name.
_ORDER = (
    "quickstart",
    "nuts",
    "minibatch_and_plates",
    "choosing_a_sampler",
    "bayesian_networks",
    "diagnosing",
    "calibration",
    "scaling_out",
    "random_measures",
    "nrm_mixture",
    "amortized_clustering",
    "one_network_or_many",
    "diffusion",
    "martingale_posteriors",
    "copula_densities",
    "nonparametric_learning",
    "misspecified_models",
    "pseudocoresets",
)
_NOT_PAGES = ("demo",)  # a program that `pyro-ext demo` runs
_BOUNDARY = "END-OF-CELL"
_SHORT_RUN = (
    "This is a short run, which only shows that the page works: its numbers and figures are not "
    "those of the full one."
)


@dataclass(frozen=True)
class Cell:
    """A cell of a script.

    :param bool is_text: whether it holds text, in Markdown.
    :param str content: what it holds.
    """

    is_text: bool
    content: str


def read_cells(source: str) -> tuple[str, list[Cell]]:
    """Split a script into the first line of its docstring and its cells.

    :param str source: the script.
    :raises ValueError: where the script does not begin with a docstring and a cell of text that
        begins with a title.
    """
    head, *parts = re.split(r"^# %%", source, flags=re.MULTILINE)
    docstring = re.match(r'r?"""(.+?)(?:\n|""")', head)
    cells = []
    for part in parts:
        marker, _, content = part.partition("\n")
        is_text = "[markdown]" in marker
        if is_text:
            content = re.sub(r"^# ?", "", content, flags=re.MULTILINE)
        cells.append(Cell(is_text, content.strip()))
    if docstring is None or not cells or not cells[0].content.startswith("# "):
        raise ValueError("a tutorial begins with a docstring and a cell of text with a title")
    return docstring[1].strip(), cells


def to_gallery(source: str, note: str = "") -> str:
    """Write a script anew with its text in reStructuredText.

    :param str source: a script of percent cells with text in Markdown.
    :param str note: a sentence to put at the head of the page.
    """
    summary, cells = read_cells(source)
    title, _, rest = cells[0].content.partition("\n")
    title = title.removeprefix("# ")
    cells[0] = Cell(True, rest.strip())
    texts = f"\n\n{_BOUNDARY}\n\n".join(cell.content for cell in cells if cell.is_text)
    converted = iter(_to_rst(texts).split(f"\n{_BOUNDARY}\n"))
    head = "\n\n".join(
        [f"{title}\n{'=' * len(title)}", summary, f".. note:: {note}" if note else ""]
    )
    blocks = [f'r"""\n{head.strip()}\n"""']
    for cell in cells:
        if cell.is_text:
            lines = next(converted).strip().splitlines()
            blocks.append("\n".join(["# %%", *(f"# {line}".rstrip() for line in lines)]))
        else:
            blocks.append(f"# %%\n{cell.content}")
    return "\n\n".join(blocks) + "\n"


def write_examples(tutorials: Path, target: Path, smoke: bool) -> None:
    """Write all tutorials for sphinx-gallery, which runs those that have changed.

    :param Path tutorials: the folder of the tutorials; each folder in it is a section.
    :param Path target: where to write them; what is no tutorial any more is removed.
    :param bool smoke: whether they will run shortly.
    """
    shutil.rmtree(target, ignore_errors=True)
    for folder in (tutorials, *sorted(path for path in tutorials.iterdir() if path.is_dir())):
        pages = [path for path in sorted(folder.glob("[!_]*.py")) if path.stem not in _NOT_PAGES]
        if not pages:
            continue
        place = target / folder.relative_to(tutorials)
        place.mkdir(parents=True)
        title = "Tutorials" if folder == tutorials else folder.name.replace("_", " ").capitalize()
        heading = f"{title}\n{('=' if folder == tutorials else '-') * len(title)}\n"
        (place / "GALLERY_HEADER.rst").write_text(heading)
        for page in pages:
            source = to_gallery(page.read_text("utf-8"), _SHORT_RUN if smoke else "")
            (place / page.name).write_text(_linked(source, tutorials), "utf-8")


def page_order(name: str) -> tuple[int, str]:
    """Place of a page among those of its section."""
    stem = Path(name).stem
    return (_ORDER.index(stem) if stem in _ORDER else len(_ORDER), stem)


class SavedFigures:
    """Shows the pictures that a cell has saved in the folder of figures."""

    def __call__(self, block: Any, block_vars: Any, gallery_conf: Any) -> str:
        """Move new pictures to where the page looks for them, and return what shows them."""
        from sphinx_gallery.scrapers import figure_rst

        pictures = []
        folder = Path(os.environ[FIGURES])
        for path in sorted(folder.rglob("*.png"), key=lambda path: path.stat().st_mtime_ns):
            pictures.append(str(next(block_vars["image_path_iterator"])))
            shutil.move(path, pictures[-1])
        return str(figure_rst(pictures, gallery_conf["src_dir"]))

    def __repr__(self) -> str:
        return "SavedFigures()"  # without an address, which would look like a change of settings


def begin_page(gallery_conf: Any, fname: Any) -> None:
    """Give each page fresh global state and a folder of its own for figures."""
    import pyro
    import torch

    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    folder = Path(gallery_conf["src_dir"]) / "_build" / "figures" / Path(fname).stem
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ[FIGURES] = str(folder)
    warnings.formatwarning = format_warning


def format_warning(message: Any, category: type[Warning], *_: Any) -> str:
    """A warning as a page shows it, without the path of a file on the machine that built it."""
    return f"{category.__name__}: {message}\n"


def _to_rst(markdown: str) -> str:
    options = ["--wrap=preserve"]
    return str(pypandoc.convert_text(markdown, "rst", format="gfm", extra_args=options))


def _linked(source: str, tutorials: Path) -> str:
    """Turn the names of other pages into links."""

    def link(match: re.Match[str]) -> str:
        stem = match[1]
        is_page = (tutorials / f"{stem}.py").exists() and stem not in _NOT_PAGES
        return f":doc:`{stem}.py </gallery/{stem}>`" if is_page else match[0]

    return re.sub(r"``(\w+)\.py``", link, source)
