"""The table of all benchmarks: its rows, as text in a terminal, on the page, and as a picture."""

import io
import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

__all__ = [
    "PAGE",
    "PICTURE",
    "README",
    "Results",
    "Row",
    "cells",
    "page",
    "picture",
    "print_table",
    "readme",
    "rows",
    "saved",
    "short",
    "with_lines",
    "write_page",
]

Results = dict[str, Any]
"""Contents of the file of ``table.py``: date, machine, and the cases of each benchmark."""

PAGE = Path(__file__).parent.parent / "docs" / "speed.md"
PICTURE = PAGE.with_name("speed.svg")
README = PAGE.parents[1] / "README.md"
# Benchmarks beside a library, as its users call it.
IN_README = ("step_time", "nuts", "posterior_bootstrap", "nrm_mixtures")

OURS = "pyro_ext"
_BEGIN, _END = "<!-- what follows is written by make -->\n", "<!-- end -->\n"

# Colors that stand out from white and from black; what is written by hand is gray.
_COLORS = {
    "Pyro": "#d55e00",
    "NumPyro": "#cc79a7",
    "BlackJAX": "#0a7fc4",
    "posteriors": "#009e73",
    "PyTorch": "#c99700",
    "SciPy": "#8d6bd0",
    "scikit-learn": "#4aa8d8",
    "bnpy": "#a65628",
}
_GRAY = "#8b9097"
_MARKERS = "osD^vPX*<>hp"
_INK, _PAPER = ("#1f2328", "#e6e6e6"), ("#ffffff", "#131416")


class Row(NamedTuple):
    """A case beside one peer.

    :param str what: is compared.
    :param str peer: its name, and after a comma how it is used.
    :param str unit: of the times.
    :param times: of ours and of the peer.
    :param ratio: of the peer's time to ours.
    :param span: least and largest ratio of a round.
    :param first_call: seconds of the first call of each, ours first.
    :param str draws: what the draws of each are worth, ours first.
    :param str missing: why there is no time.
    """

    what: str
    peer: str
    unit: str
    times: tuple[float, float] | None = None
    ratio: float | None = None
    span: Sequence[float] = ()
    first_call: tuple[float | None, float | None] = (None, None)
    draws: str = ""
    missing: str = ""


def rows(results: Results) -> Iterator[Row]:
    """Each case beside each of its peers, in the order in which they were measured."""
    for name, benchmark in results["benchmarks"].items():
        for case in benchmark.get("cases", ()):
            medians = case.get("median", {})
            for peer, ratio in case.get("ratio", {}).items():
                if peer.startswith(OURS):
                    continue
                first = case.get("first_call_s", {})
                yield Row(
                    case["case"],
                    peer,
                    case["unit"],
                    (medians[OURS], medians[peer]),
                    ratio,
                    case["span"][peer],
                    (first.get(OURS), first.get(peer)),
                    _draws(case.get("quality", {}), peer),
                )
            for peer, why in case.get("missing", {}).items():
                yield Row(case["case"], peer, case["unit"], missing=why)
        if "error" in benchmark:
            yield Row(f"{name}.py", "every peer", "", missing=benchmark["error"])


def cells(row: Row) -> list[str]:
    """Give what stands in the columns of a row."""
    start = [row.what, row.peer]
    if row.times is None or row.ratio is None:
        return [*start, "", "", "", row.unit, "", f"not measured: {row.missing}"]
    span = f"{short(row.ratio)} ({short(row.span[0])} to {short(row.span[1])})"
    first = " / ".join("" if value is None else short(value) for value in row.first_call)
    times = [short(time) for time in row.times]
    return [*start, *times, span, row.unit, first.strip(" /") and first, row.draws]


COLUMNS = ("what", "beside", "ours", "theirs", "ratio", "unit", "first call, s", "draws")


def print_table(results: Results) -> None:
    """Print the table to the terminal, and what has no peer below it."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 200  # in a log lines may be long
    smoke = ", tiny sizes that measure nothing" if results["smoke"] else ""
    console.print(f"{_where(results)}{smoke}")
    table = Table(*COLUMNS)
    for row in rows(results):
        table.add_row(*cells(row))
    if table.row_count:
        console.print(table)
    alone = Table("case", "of ours", "median", "unit", "quality", title="ours alone")
    for case in _cases(results):
        own = {side: time for side, time in case.get("median", {}).items() if side.startswith(OURS)}
        if len(own) > 1 or len(own) == len(case.get("median", {})):
            for side, time in own.items():
                quality = case.get("quality", {}).get(side, {})
                worth = ", ".join(f"{key} {short(value)}" for key, value in quality.items())
                alone.add_row(case["case"], side, short(time), case["unit"], worth)
    if alone.row_count:
        console.print(alone)


def page(text: str, tables: Sequence[Results]) -> str:
    """The page with the tables of these results in place of those that it has.

    :param str text: the page.
    :param Sequence tables: results, one for each device.
    """
    lines = []
    for results in tables:
        lines += [f"{_where(results)}. {_versions(results)}.", ""]
        lines += [f"| {' | '.join(COLUMNS)} |", "|---|---|--:|--:|--:|---|--:|---|"]
        lines += [f"| {' | '.join(cells(row))} |" for row in rows(results)]
        lines += [""]
    return with_lines(text, lines)


def readme(text: str, results: Results) -> str:
    """The README with a row for each case of :data:`IN_README`, and all its peers in it.

    :param str text: the README.
    :param dict results: those on the processor.
    """
    shown = {"benchmarks": {name: results["benchmarks"][name] for name in IN_README}}
    lines = [f"{_where(results)}:", "", "| job | unit | here | beside |", "|---|---|--:|---|"]
    for (what, unit), group in groupby(rows(shown), lambda row: (row.what, row.unit)):
        ours = ""
        beside: list[str] = []
        for row in group:
            if row.times is None:
                beside.append(f"{row.peer} not measured")
            else:
                ours, theirs = map(short, row.times)
                beside.append(f"{theirs} {row.peer}")
        lines.append(f"| {what} | {unit} | {ours} | {'; '.join(beside)} |")
    return with_lines(text, [*lines, ""])


def write_page() -> None:
    """Write page, picture and the README's table from the results that are kept beside the page."""
    kept = [json.loads(path.read_text()) for path in saved()]
    PAGE.write_text(page(PAGE.read_text(), kept))
    README.write_text(readme(README.read_text(), kept[0]))
    PICTURE.write_text(picture(kept[0]))


def saved() -> list[Path]:
    """Files of results, that of the processor first."""
    return sorted(PAGE.parent.glob("speed*.json"), key=lambda path: (len(path.name), path.name))


def picture(results: Results) -> str:
    """The ratios as SVG, whose ink and paper follow the reader's choice of light or dark."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    shown = [row for row in rows(results) if row.ratio is not None]
    cases = list(dict.fromkeys(row.what for row in shown))
    names = [row.peer.partition(",")[0] for row in shown]
    markers = dict(zip(dict.fromkeys(names), _MARKERS, strict=False))
    ink, paper = _INK[0], _PAPER[0]
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "speed",
        "font.size": 9,
        **{f"{part}.color": ink for part in ("text", "xtick", "ytick")},
        **{f"axes.{part}": ink for part in ("edgecolor", "labelcolor")},
    }
    with matplotlib.rc_context(style):
        figure = Figure((8.6, 1.2 + 0.26 * len(cases)), facecolor=paper, layout="constrained")
        axes = figure.add_subplot(facecolor=paper)
        for name, marker in markers.items():
            color = _COLORS.get(name, _GRAY)
            own = [row for row, other in zip(shown, names, strict=True) if other == name]
            places = [cases.index(row.what) for row in own]
            ratios = [row.ratio for row in own]
            axes.hlines(places, *zip(*(row.span for row in own), strict=True), color=color)
            axes.plot(ratios, places, marker, color=color, markersize=6, label=name)
        axes.axvline(1.0, color=ink, linewidth=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_yticks(range(len(cases)), cases)
        axes.set_ylim(len(cases) - 0.4, -0.6)
        axes.grid(axis="y", color=_GRAY, linewidth=0.3)
        axes.set_xlabel("time of the peer over ours: right of 1 pyro_ext is faster")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        figure.legend(
            loc="outside upper left", ncols=6, frameon=False, handletextpad=0.1, columnspacing=1
        )
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    drawn = written.getvalue().replace(ink, "var(--ink)").replace(paper, "var(--paper)")
    colors = [f"svg {{ --ink: {_INK[i]}; --paper: {_PAPER[i]} }}" for i in (0, 1)]
    sheet = f"{colors[0]} @media (prefers-color-scheme: dark) {{ {colors[1]} }}"
    return drawn.replace(" <defs>", f" <style>{sheet}</style>\n <defs>", 1)


def with_lines(text: str, lines: Sequence[str]) -> str:
    """The text with these lines in the place that is marked in it."""
    head, rest = text.split(_BEGIN)
    return head + _BEGIN + "\n".join(["", *lines]) + _END + rest.partition(_END)[2]


def _where(results: Results) -> str:
    cards = sorted({case["device"] for case in _cases(results)} - {"cpu"})
    where = [*cards, results["machine"]["processor"], results["machine"]["system"]]
    return f"{', '.join(where)}, {results['date']}"


def _cases(results: Results) -> list[dict[str, Any]]:
    return [case for found in results["benchmarks"].values() for case in found.get("cases", ())]


def _versions(results: Results) -> str:
    found: dict[str, str] = {}
    for case in _cases(results):
        found |= case["versions"]
    return ", ".join(f"{name} {number}" for name, number in sorted(found.items()))


def _draws(quality: dict[str, dict[str, float]], peer: str) -> str:
    ours, theirs = quality.get(OURS, {}), quality.get(peer, {})
    return "; ".join(
        f"{key.replace('_', ' ')} {short(value)} / {short(theirs[key])}"
        for key, value in ours.items()
        if key in theirs
    )


def short(value: float) -> str:
    """Three digits, without an exponent."""
    if value == 0.0:
        return "0"
    digits = f"{float(f'{value:.3g}'):,.10f}".rstrip("0").rstrip(".")
    return digits


if __name__ == "__main__":
    write_page()
