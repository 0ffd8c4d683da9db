"""The pages of papers and workflows, their gallery and the scoreboard, written for Sphinx.

Pages are scripts of percent cells, which jupytext reads. None is run: numbers and figures come from
the runs in full in `docs/runs`, which `python -m tests.pages --save` puts there.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import Any

import jupytext
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook, new_output
from PIL import Image
from sphinx.application import Sphinx

from pyro_ext import tutorials
from pyro_ext.reproduction.notebooks import to_notebook
from pyro_ext.reproduction.pages import PRINTED_NAME, Outcome, Script, find_pages, kept_outcome
from pyro_ext.reproduction.scoreboard import scoreboard, summary

# In the order in which to read them.
WORKFLOWS = (
    "quickstart",
    "nuts",
    "minibatch-and-plates",
    "choosing-a-sampler",
    "hard-posteriors",
    "many-chains",
    "evidence",
    "bayesian-networks",
    "diagnosing",
    "calibration",
    "scaling-out",
    "random-measures",
    "nrm-mixture",
    "amortized-clustering",
    "one-network-or-many",
    "diffusion",
    "martingale-posteriors",
    "copula-densities",
    "nonparametric-learning",
    "misspecified-models",
    "pseudocoresets",
)
THEMES = {
    "Samplers": ("px-sgmcmc", "l2e", "functional-adjoint-sampler", "twisted-smc"),
    "Random measures and partitions": (
        "crm-series",
        "double-power-law",
        "tgmcmc",
        "rbhc",
        "bfry-graph",
    ),
    "Posteriors without a likelihood for all data": (
        "nptl",
        "mpnp",
        "pseudocoreset-divergences",
        "function-space-pseudocoreset",
    ),
    "Ensembles and averages of networks": (
        "latent-be",
        "bridge-network",
        "dbn",
        "bomf",
        "swamp",
        "long-tailed-srepr",
        "prior-augmented-data",
        "fedsvd",
    ),
    "Wide networks": ("mogp", "asymmetric-scaling"),
    "Sets and graphs": (
        "set-transformer",
        "dac",
        "setvae",
        "slot-mixup",
        "graph-embedding-vae",
        "tspear-tshield",
    ),
    "Diffusion models": (
        "adversarial-purification",
        "early-exit-diffusion",
        "sdd",
        "hfi",
        "modular-lora",
    ),
    "Symmetry and molecules": (
        "soft-equivariance",
        "symmetry-generators",
        "axial-networks",
        "bayesian-e3-potential",
    ),
    "Curves, time series and images": ("nsl-pfn", "supnotmiwae", "rc-mae"),
}
NOT_PAGES = ("demo",)  # a program that `pyro-ext demo` runs
NOT_RUN = "not run in full for this release"
THUMBNAIL = (480, 300)
FIGURE_CALL = re.compile(r'page\.figure\(\s*(?:"([a-z0-9-]+)")?')


@dataclass(frozen=True)
class SavedPage:
    """A page with its saved run, if there is one.

    :param Script script: the page.
    :param Path runs: the folder of saved runs.
    :param bool is_paper: whether it is the page of a paper.
    """

    script: Script
    runs: Path
    is_paper: bool

    @property
    def document(self) -> str:
        """Its place in the gallery."""
        return f"papers/{self.script.path.stem}" if self.is_paper else self.script.path.stem

    @property
    def folder(self) -> Path:
        """Folder of its saved run."""
        return self.runs / self.script.slug

    @cached_property
    def outcome(self) -> Outcome | None:
        """Return how its saved run ended."""
        return kept_outcome(self.script, self.runs)

    @cached_property
    def notebook(self) -> NotebookNode:
        """The script as a notebook, which begins with a title."""
        found: NotebookNode = to_notebook(self.script)
        if not found.cells[0].source.startswith("# "):
            raise ValueError(f"{self.script.path} must begin with a docstring and a title")
        return found

    @property
    def title(self) -> str:
        """The title in its first cell."""
        title: str = self.notebook.cells[0].source.partition("\n")[0]
        return title.removeprefix("# ")

    @cached_property
    def figures(self) -> dict[str, str]:
        """Describe its saved figures by name, in the order in which the script makes them."""
        saved = {path.stem for path in self.folder.glob("*.png")}
        named = [name for name in FIGURE_CALL.findall(self.script.path.read_text("utf-8")) if name]
        return {
            name: self._alternative_text(name)
            for name in dict.fromkeys([*named, *sorted(saved)])
            if name in saved
        }

    def _alternative_text(self, name: str) -> str:
        with Image.open(self.folder / f"{name}.png") as image:
            shown = image.info.get("Description", "")
        return f"{name.replace('-', ' ').capitalize()}, a figure of {self.title}. {shown}".strip()

    @property
    def verdict(self) -> str:
        """Result in a few words."""
        if self.outcome is None:
            return NOT_RUN
        if self.outcome.report is None:
            return "run in full"
        return self.outcome.verdict


def setup(app: Sphinx) -> dict[str, bool]:
    """Make it known to Sphinx."""
    app.connect("builder-inited", _write_gallery)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _write_gallery(app: Sphinx) -> None:
    source = Path(app.srcdir)
    write_gallery(Path(tutorials.__path__[0]), source / "runs", source / "gallery")


def write_gallery(scripts: Path, runs: Path, target: Path) -> None:
    """Write all pages, the gallery and the scoreboard; what has not changed is left alone.

    :param Path scripts: the folder of workflows, with that of papers in it.
    :param Path runs: the folder of saved runs.
    :param Path target: where to write; what is no page any more is removed.
    :raises ValueError: where a page has no place in the gallery, or a place no page.
    """
    workflows = _ordered(scripts, runs, WORKFLOWS)
    order = [slug for slugs in THEMES.values() for slug in slugs]
    papers = {page.script.slug: page for page in _ordered(scripts / "papers", runs, order)}
    written: set[Path] = set()

    def write(name: str, text: str) -> None:
        written.add(target / name)
        if not (target / name).exists() or (target / name).read_text("utf-8") != text:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_text(text, "utf-8")

    titles = {page.script.path.stem: page for page in [*workflows, *papers.values()]}
    for page in titles.values():
        write(f"notebooks/{page.script.path.stem}.ipynb", _dumped(page.notebook))
        write(f"scripts/{page.script.path.name}", page.script.path.read_text("utf-8"))
        write(f"{page.document}.ipynb", _dumped(_as_page(page, titles)))
        if page.figures:
            path = target / _thumbnail_of(page)
            written.add(path)
            _save_thumbnail(page.folder / f"{next(iter(page.figures))}.png", path)
        else:
            write(_thumbnail_of(page), _placeholder(page.title))
    write("index.md", _index(workflows, papers))
    write("scoreboard.md", _scoreboard_page(list(papers.values())))
    for path in [path for path in target.rglob("*") if path.is_file()]:
        if path not in written:
            path.unlink()


def _ordered(folder: Path, runs: Path, slugs: Sequence[str]) -> list[SavedPage]:
    """Pages of a folder in the order of their names."""
    found = {page.slug: page for page in find_pages(folder) if page.path.stem not in NOT_PAGES}
    if set(found) != set(slugs) or len(slugs) > len(set(slugs)):
        raise ValueError(
            "docs/gallery_pages.py must give each page one place; without one or without a page: "
            f"{sorted(set(found) ^ set(slugs))}"
        )
    return [SavedPage(found[slug], runs, folder.name == "papers") for slug in slugs]


def _dumped(notebook: NotebookNode) -> str:
    """A notebook as text, the same at each build: cells are named by their places."""
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata.pop("lines_to_next_cell", None)
    return str(jupytext.writes(notebook, "ipynb"))


def _as_page(page: SavedPage, titles: dict[str, SavedPage]) -> NotebookNode:
    """The notebook with what was measured, figures after their cells, and folded set-up."""
    head, *cells = page.notebook.cells
    _, _, text = head.source.partition(f"*{page.script.title}*\n")
    stem = page.script.path.stem
    up = "../" if page.is_paper else ""
    downloads = (
        f"{{download}}`Script <{up}scripts/{stem}.py>` · "
        f"{{download}}`Notebook <{up}notebooks/{stem}.ipynb>`"
    )
    text = _linked(text, page, titles)
    head = new_markdown_cell(
        f"# {page.title}\n\n{_paragraph(page.script.title, 'lead')}\n{text}\n\n{downloads}"
    )
    made = [head, new_markdown_cell(_what_was_measured(page))]
    left = dict(page.figures)
    printed = iter(_printed_by_cell(page))
    for number, cell in enumerate(cells):
        cell = cell.copy()
        if cell.cell_type == "markdown":
            cell.source = _linked(cell.source, page, titles)
            made.append(cell)
            continue
        if all(earlier.cell_type == "markdown" for earlier in cells[:number]):
            cell.metadata = cell.metadata | {
                "tags": ["hide-input"],
                "mystnb": {
                    "code_prompt_show": "Set-up: imports and constants",
                    "code_prompt_hide": "Set-up",
                },
            }
        if text := next(printed, ""):
            cell.outputs = [new_output("stream", name="stdout", text=text)]
        made.append(cell)
        names = FIGURE_CALL.findall(cell.source)
        if "" in names:  # named where it is drawn: what no other cell makes
            known = {name for other in cells for name in FIGURE_CALL.findall(other.source)}
            names += [name for name in left if name not in known]
        shown = [_figure(page, name) for name in names if left.pop(name, None)]
        if shown:
            made.append(new_markdown_cell("\n\n".join(shown)))
    language = {"name": "python", "pygments_lexer": "python"}
    metadata = page.notebook.metadata | {"language_info": language}
    return new_notebook(cells=made, metadata=metadata)


def _printed_by_cell(page: SavedPage) -> list[str]:
    """Text that the saved run printed in each cell of code."""
    if page.outcome is None:
        return []
    lines = (page.folder / PRINTED_NAME).read_text("utf-8").splitlines(keepends=True)
    num_cells = sum(cell.cell_type == "code" for cell in page.notebook.cells)
    before = page.outcome.lines_before or {num_cells - 1: 0}  # runs of 0.2 do not know their cells
    ends = [*list(before.values())[1:], len(lines)]
    shown = {
        cell: "".join(lines[start:end])
        for (cell, start), end in zip(before.items(), ends, strict=True)
    }
    return [shown.get(cell, "") for cell in range(num_cells)]


def _what_was_measured(page: SavedPage) -> str:
    """The state of the saved run; for a paper also the main figure and the claims."""
    outcome = page.outcome
    if outcome is None:
        return (
            ":::{note}\nThis page was not run in full for this release: it shows code, and neither "
            "numbers nor figures.\n:::"
        )
    parts = ["## What came out"] if outcome.report else []
    if not outcome.is_current:
        parts.append(
            ":::{warning}\nThe script has changed since the run that is shown here: code and "
            "results may differ.\n:::"
        )
    content = scoreboard([outcome])["pages"][0]
    if content["reconstruction"]:
        mark = "{bdg-warning}`reconstruction`"
        parts.append(f"{mark} {_plain(content['reconstruction'])}")
    if outcome.report:
        if page.figures:
            parts.append(_figure(page, next(iter(page.figures))))
        parts += [f"**{content['verdict']}.**", _claims_table(content)]
    parts.append(_paragraph(_facts(content), "facts"))
    return "\n\n".join(parts)


def _claims_table(content: dict[str, Any]) -> str:
    """Build the table of a page's claims and measurements."""
    lines = ["| | claim | bound | by seed |", "|---|---|---|---|"]
    for claim in content["claims"]:
        result = "[holds]{.holds}" if claim["holds"] else "[fails]{.fails}"
        words = "**Central:** " * claim["central"] + _plain(claim["statement"])
        if claim["reason"] and not claim["holds"]:
            words += f" [Fails: {_plain(claim['reason'])}.]{{.reason}}"
        words += f" [{_plain(claim['source'])}]{{.source}}"
        cells = (result, words, _plain(claim["inequality"]), claim["by_seed"])
        lines.append(f"| {' | '.join(cells)} |")
    return ":::{container} claims\n" + "\n".join(lines) + "\n:::"


def _facts(content: dict[str, Any]) -> str:
    """When, where and with what a page ran."""
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    time = f"{content['time']} CPU s" if content["time"] else f"{content['seconds']:.0f} s"
    facts = (f"Run in full {content['date'][:10]}".strip(), time, content["machine"], versions)
    return f"{'; '.join(filter(None, facts))}."


def _figure(page: SavedPage, name: str) -> str:
    alternative = json.dumps(page.figures[name], ensure_ascii=False)
    return f":::{{figure}} /runs/{page.script.slug}/{name}.png\n:alt: {alternative}\n:::"


def _paragraph(text: str, style: str) -> str:
    return f":::{{container}} {style}\n{_plain(text)}\n:::"


def _linked(text: str, page: SavedPage, pages: dict[str, SavedPage]) -> str:
    """Turn the names of other pages into links."""

    def link(match: re.Match[str]) -> str:
        other = pages.get(match[1])
        if other is None or other.script == page.script:
            return match[0]
        return f"{{doc}}`{match[1]}.py </gallery/{other.document}>`"

    return re.sub(r"`(?:\w+/)*(\w+)\.py`", link, text)


def _plain(text: str) -> str:
    """Text that Markdown takes as it is, in one line."""
    return re.sub(r"([\\`*_{}\[\]<>$|#])", r"\\\1", " ".join(text.split()))


def _index(workflows: Sequence[SavedPage], papers: dict[str, SavedPage]) -> str:
    """The gallery."""
    parts = [
        "# Gallery",
        "Each page is a script that runs: real data in, figures and checked claims out. What it "
        "shows comes from a run in full, and the page says when that was. "
        "{doc}`The scoreboard <scoreboard>` has the claims of all papers that were run.",
        "## Workflows",
        "From data to an answer, one page for each job.",
        _cards(workflows),
        "## Papers",
        "One page for each paper: what it says, what was measured here on real data, and the code.",
    ]
    for theme, slugs in THEMES.items():
        parts += [f"### {theme}", _cards(papers[slug] for slug in slugs)]
    parts.append(_toctree([*(page.document for page in workflows), "scoreboard"]))
    return "\n\n".join(parts) + "\n"


def _toctree(documents: Iterable[str]) -> str:
    """Documents that stand below one in the list of pages."""
    return "\n".join(["```{toctree}", ":hidden:", "", *documents, "```"])


def _cards(pages: Iterable[SavedPage]) -> str:
    """A grid of cards."""
    lines = [":::::{grid} 1 2 2 3", ":gutter: 3", ":class-container: gallery-cards", ""]
    for page in pages:
        alternative = next(iter(page.figures.values()), f"No figure of {page.title} yet")
        lines += [
            f"::::{{grid-item-card}} {_plain(page.title)}",
            f":link: /gallery/{page.document}",
            ":link-type: doc",
            f":img-top: {_thumbnail_of(page)}",
            f":img-alt: {json.dumps(alternative, ensure_ascii=False)}",
            "",
            _plain(page.script.title),
            "",
            ":::{card-footer}",
            page.verdict,
            ":::",
            "::::",
        ]
    return "\n".join([*lines, ":::::"])


def _scoreboard_page(papers: Sequence[SavedPage]) -> str:
    """The scoreboard of the saved runs."""
    run = [page for page in papers if page.outcome]
    content = scoreboard([page.outcome for page in run if page.outcome])
    lines = ["# Scoreboard of papers", "", _plain(summary(content)), ""]
    rows = [(page, found) for page, found in zip(run, content["pages"], strict=True)]
    table = [
        "| page | central claim | by seed | | all claims | run | |",
        "|---|---|---|---|---|---|---|",
    ]
    for page, found in rows:
        claim = found["central"]
        marks = [
            "reconstruction" if found["reconstruction"] else "",
            "" if page.outcome and page.outcome.is_current else "script changed since",
        ]
        link = f"{{doc}}`{found['slug']} </gallery/{page.document}>`"
        words = ("", "", "")
        if claim:
            bound = f"{claim['by_seed']} ({claim['inequality']})"
            result = "[holds]{.holds}" if claim["holds"] else "[fails]{.fails}"
            words = (_plain(claim["statement"]), _plain(bound), result)
        cells = (link, *words, found["verdict"], found["date"][:10])
        table.append(f"| {' | '.join(cells)} | {', '.join(filter(None, marks))} |")
    if rows:
        lines += [":::{container} dense", *table, ":::"]
    missing = [page for page in papers if not page.outcome]
    if missing:
        links = (f"{{doc}}`{page.script.slug} </gallery/{page.document}>`" for page in missing)
        lines += ["", f"{NOT_RUN.capitalize()}: {', '.join(links)}."]
    for page, found in rows:
        lines += ["", f"## {page.title}", "", _plain(found["paper"] or found["title"]), ""]
        if found["reconstruction"]:
            lines += [f"A reconstruction: {_plain(found['reconstruction'])}", ""]
        lines.append(_claims_table(found) if found["claims"] else f"{found['verdict']}.")
    lines += ["", _toctree(page.document for page in papers)]  # below it in the list of pages
    return "\n".join(lines) + "\n"


def _thumbnail_of(page: SavedPage) -> str:
    return f"thumbnails/{page.script.slug}.{'png' if page.figures else 'svg'}"


def _save_thumbnail(picture: Path, target: Path) -> None:
    """A small picture on white, where it is older than the large one."""
    if target.exists() and target.stat().st_mtime >= picture.stat().st_mtime:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(picture) as image:
        image = image.convert("RGB")
        image.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
        white = Image.new("RGB", THUMBNAIL, "white")
        white.paste(image, ((THUMBNAIL[0] - image.width) // 2, (THUMBNAIL[1] - image.height) // 2))
        white.quantize(64).save(target, optimize=True)


def _placeholder(title: str) -> str:
    """A drawing of the title, for a page without figures."""
    width, height = THUMBNAIL
    lines = wrap(title, 24)
    first = 0.36 * height - 17 * (len(lines) - 1) + 10
    texts = "".join(
        f'<text x="{width / 2:g}" y="{first + 34 * number:g}">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
        f'<rect width="{width}" height="{height}" fill="#dfe7ec"/>'
        f'<path d="M0 240 Q60 235 110 190 T210 130 T300 190 T390 235 T480 240 V300 H0 Z" '
        'fill="#c3d3dd"/><g font-family="sans-serif" font-size="27" fill="#34495a" '
        f'text-anchor="middle">{texts}</g></svg>\n'
    )
