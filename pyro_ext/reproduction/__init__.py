"""Claims of a paper, as inequalities between measured numbers and a bound, and a report on them.

A :class:`Page` collects the :class:`Claim` s and figures of a paper's page. It ends with a
:class:`Report`, which prints a table, saves the numbers, and ends the run with an error if a claim
fails::

    page = Page("px-sgmcmc", paper="H. Kim et al. (2025), Parameter expanded ...")
    page.figure("modes", figure)
    page.claim("One chain finds most of 25 modes.", found, ">=", 15, source="figure 2")
    page.finish()

``pyro-ext list`` shows the pages with their last results, ``pyro-ext reproduce`` runs them.
"""

import builtins
import json
import math
import numbers
import operator
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeVar, get_args

from typing_extensions import TypeIs

from pyro_ext._lib.files import json_object, read_bytes, read_json, save_picture, write_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "FIGURES_VARIABLE",
    "FILE_NAME",
    "MIN_SEEDS",
    "SEEDS_VARIABLE",
    "SMOKE_VARIABLE",
    "Across",
    "Claim",
    "Comparison",
    "Figure",
    "Page",
    "Report",
    "seeds",
]

Comparison = Literal["<", "<=", ">", ">="]
Across = Literal["every seed", "mean", "one number"]

FILE_NAME = "report.json"
MIN_SEEDS = 3
SEEDS_VARIABLE = "PYRO_EXT_SEEDS"
SMOKE_VARIABLE = "PYRO_EXT_SMOKE"
FIGURES_VARIABLE = "PYRO_EXT_FIGURES"

_SCHEMA = 1
_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_DISTRIBUTIONS = ("pyro-ext", "torch", "pyro-ppl", "numpy")  # what the numbers of a page depend on
_COMPARE: dict[Comparison, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

_Value = TypeVar("_Value")


class Figure(Protocol):
    """Anything that can save itself as a picture, such as a figure of Matplotlib."""

    def savefig(self, fname: Any, /, *, dpi: float) -> None:
        """Save the picture in a file."""


def seeds() -> tuple[int, ...]:
    """Return the seeds to run a page with: those in ``PYRO_EXT_SEEDS``, by default 0, 1 and 2.

    :raises ValueError: if that variable does not contain at least three different seeds.

    Example::

        >>> seeds()
        (0, 1, 2)
    """
    text = os.environ.get(SEEDS_VARIABLE, " ".join(map(str, range(MIN_SEEDS))))
    chosen = text.split()
    if len(set(chosen)) < max(len(chosen), MIN_SEEDS) or not all(map(str.isdecimal, chosen)):
        raise ValueError(
            f"{SEEDS_VARIABLE} must contain at least {MIN_SEEDS} different integers >= 0, "
            f"separated by spaces, got {text!r}"
        )
    return tuple(map(int, chosen))


def is_smoke() -> bool:
    """Tell whether pages should make a short smoke run."""
    return os.environ.get(SMOKE_VARIABLE, "") not in ("", "0")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers of a page depend on."""
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        with suppress(metadata.PackageNotFoundError):  # a checkout that is not installed
            found[name] = metadata.version(name)
    return found


@dataclass(frozen=True)
class Claim:
    """A statement of a paper, as an inequality between measured values and a bound.

    The bound comes from the paper or was preregistered; it never comes from the measured values. A
    claim that fails stays on the page, with the reason if known.

    :param str statement: the claim, as a sentence.
    :param Mapping values: the measured value for each seed, at least three.
    :param str comparison: ``"<"``, ``"<="``, ``">"`` or ``">="``: how the values compare with the
        bound.
    :param float bound: the bound, a finite number.
    :param str source: the source of the claim and its bound: paper, and table, figure or section.
    :param str across: whether it is about ``"every seed"``, their ``"mean"``, or ``"one number"``.
    :param str reason: why the claim fails, if it is known to fail.
    :param bool central: whether it tests the main claim of the abstract; at most one of a page.

    Example::

        >>> claim = Claim(
        ...     "The sampler finds at least 15 of 25 modes.",
        ...     values={0: 22, 1: 19, 2: 21},
        ...     comparison=">=",
        ...     bound=15,
        ...     source="Zhang et al. (2020), section 5.1",
        ... )
        >>> claim.measured, claim.holds
        (19.0, True)
    """

    statement: str
    values: Mapping[int, float]
    comparison: Comparison
    bound: float
    source: str
    across: Across = "every seed"
    reason: str | None = None
    central: bool = False

    def __post_init__(self) -> None:
        """Check the arguments."""
        for argument in ("statement", "source"):
            text = getattr(self, argument)
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{argument} must be a text that is not blank, got {text!r}")
        if not isinstance(self.reason, str | None):
            raise TypeError(f"reason must be text or None, got {self.reason!r}")
        try:
            values = {int(seed): float(value) for seed, value in self.values.items()}
        except (AttributeError, TypeError, ValueError):
            values = {}
        if len(values) < MIN_SEEDS:
            raise ValueError(
                f"values must map at least {MIN_SEEDS} seeds to numbers, got {self.values!r}"
            )
        for argument, allowed in (("comparison", Comparison), ("across", Across)):
            if getattr(self, argument) not in get_args(allowed):
                raise ValueError(
                    f"{argument} must be one of {get_args(allowed)}, got "
                    f"{getattr(self, argument)!r}"
                )
        if self.across == "one number" and len(set(map(str, values.values()))) > 1:
            raise ValueError(f"values must be one number for all seeds, got {self.values!r}")
        if not _is_number(self.bound) or not math.isfinite(self.bound):
            raise ValueError(f"bound must be a finite number, got {self.bound!r}")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "bound", float(self.bound))

    @property
    def measured(self) -> float:
        """The number compared with the bound: the mean, or the value closest to failing."""
        values = list(self.values.values())
        if any(math.isnan(value) for value in values):
            return math.nan
        if self.across == "mean":
            return sum(values) / len(values)
        return min(values) if self.comparison in (">", ">=") else max(values)

    @property
    def holds(self) -> bool:
        """Tell whether the inequality holds; it never does for NaN."""
        return _COMPARE[self.comparison](self.measured, self.bound)


@dataclass(frozen=True)
class Report:
    """The claims of a paper's page, and the results.

    :param str slug: short name of the page: lowercase letters, digits and single hyphens.
    :param Sequence claims: the claims, at least one.
    :param str paper: the paper, as a reference.
    :param Mapping settings: the settings of the run, plain values that JSON can represent.
    :param Mapping figures: figures of matplotlib by name; in a loaded report, paths of pictures.
    :param str reconstruction: parts of the paper that were not available and that we reconstructed.
    :param float seconds: how long the page ran.
    :param bool smoke: whether this was a short run, which only shows that the page works. Its
        numbers are shown but decide nothing.
    :param Mapping versions: versions that the numbers depend on. Default: the current ones.
    :param str date: when the report was made. Default: now.

    Example::

        >>> claim = Claim("Three is less than four.", {0: 3, 1: 3, 2: 3}, "<", 4, "arithmetic")
        >>> report = Report("counting", claims=[claim], settings={"fingers": 5})
        >>> report.holds, report.status
        (True, 0)
    """

    slug: str
    claims: Sequence[Claim]
    paper: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Figure | Path] = field(default_factory=dict)
    reconstruction: str = ""
    seconds: float | None = None
    smoke: bool = False
    versions: Mapping[str, str] = field(default_factory=versions)
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        """Check the arguments."""
        # Listing pages needs this module, and no PyTorch.
        from pyro_ext._lib import checks

        checks.mapping("figures", self.figures, "a dict of figures by name")
        checks.sequence("claims", self.claims, "a list of claims", 1, Claim)
        if (number := sum(claim.central for claim in self.claims)) > 1:
            raise ValueError(f"claims must have at most one that is central, got {number}")
        _check_slug("slug", self.slug)
        for name in self.figures:
            _check_slug("figures", name)
        for argument in ("paper", "reconstruction", "date"):
            checks.instance(argument, getattr(self, argument), str, "text")
        checks.optional(checks.number, "seconds", self.seconds, least=0)
        checks.boolean("smoke", self.smoke)
        checks.mapping("versions", self.versions, "a dict of texts")
        for version in self.versions.values():
            checks.instance("versions", version, str, "a dict of texts")
        try:
            settings = _as_in_json(self.settings)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"settings must be plain values that JSON can represent, got {self.settings!r}"
            ) from error
        object.__setattr__(self, "claims", tuple(self.claims))
        object.__setattr__(self, "settings", settings)

    @property
    def holds(self) -> bool:
        """Tell whether all claims hold."""
        return all(claim.holds for claim in self.claims)

    @property
    def status(self) -> int:
        """Exit status of the page: 1 if a claim fails, else 0. It is always 0 for a short run."""
        return int(not (self.holds or self.smoke))

    @property
    def verdict(self) -> str:
        """The result in a few words.

        Example::

            >>> claim = Claim("Three is less than two.", {0: 3, 1: 3, 2: 3}, "<", 2, "arithmetic")
            >>> Report("counting", [claim]).verdict
            '0 of 1 claims hold'
        """
        if self.smoke:
            return "short run, decides nothing"
        return f"{sum(claim.holds for claim in self.claims)} of {len(self.claims)} claims hold"

    def print(self, console: "Console | None" = None) -> None:
        """Print the table of claims, the reasons of failures, and the settings.

        :param Console console: where to print. Default: the standard output.
        """
        from rich.console import Console

        console = console or Console()
        console.print(self._table())
        if self.reconstruction:
            console.print(f"A reconstruction: {self.reconstruction}", markup=False, highlight=False)
        for number, claim in enumerate(self.claims, 1):
            console.print(f"[{number}] {claim.source}", markup=False, highlight=False)
            if claim.reason and not claim.holds and not self.smoke:
                console.print(f"    fails: {claim.reason}", markup=False, highlight=False)
        facts = [] if self.seconds is None else [f"{self.seconds:.0f} s"]
        facts += [f"{name} {version}" for name, version in self.versions.items()]
        console.print(", ".join(facts), markup=False, highlight=False)

    def save(self, folder: str | Path) -> Path:
        """Save the report as ``report.json``, and each figure as a picture in the same folder.

        :param folder: the folder, which is created if it is missing.
        :returns: the path of the report.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = {}
        for name, figure in self.figures.items():
            target = folder / (name + (figure.suffix if isinstance(figure, Path) else ".png"))
            names[name] = target.name
            if not isinstance(figure, Path):
                save_picture(figure, target, dpi=120)
            elif figure.resolve() != target.resolve():
                write_bytes(target, read_bytes(figure))
        content = {
            "schema": _SCHEMA,
            "slug": self.slug,
            "verdict": self.verdict,
            "paper": self.paper,
            "claims": [_claim_to_json(claim) for claim in self.claims],
            "settings": self.settings,
            "figures": names,
            "reconstruction": self.reconstruction,
            "seconds": self.seconds,
            "smoke": self.smoke,
            "versions": dict(self.versions),
            "date": self.date,
        }
        path = folder / FILE_NAME
        write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Load a saved report. Whether claims hold is computed again from their values.

        :param path: the file, or its folder.
        :raises FileNotFoundError: if there is no such file.
        :raises ValueError: if the file is not a report.
        """
        path = Path(path)
        path = path / FILE_NAME if path.is_dir() else path
        try:
            content = read_json(path)
            if (schema := content.pop("schema")) != _SCHEMA:
                raise ValueError(f"its schema is {schema!r}, and {_SCHEMA} is known")
            del content["verdict"]
            claims = [_claim_from_json(claim) for claim in content.pop("claims")]
            figures = {n: path.parent / Path(f).name for n, f in content.pop("figures").items()}
            return cls(claims=claims, figures=figures, **content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a readable report: {error}") from error

    def exit(self) -> None:
        """End the program with status 1 if a claim fails; otherwise, or in a notebook, continue.

        :raises SystemExit: if a claim fails.
        """
        if self.status and not hasattr(builtins, "get_ipython"):
            raise SystemExit(self.status)

    def _table(self) -> "Table":
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=escape(f"{self.slug}: {self.verdict}"), title_justify="left")
        for column in ("", "claim", "seeds", "compared", "result"):
            table.add_column(column, overflow="fold")
        for number, claim in enumerate(self.claims, 1):
            result = "[green]holds[/]" if claim.holds else "[bold red]FAILS[/]"
            by_seed = [f"{seed}: {value:.4g}" for seed, value in claim.values.items()]
            table.add_row(
                str(number),
                ("[bold]Central:[/] " if claim.central else "") + escape(claim.statement),
                "" if claim.across == "one number" else "\n".join(by_seed),
                f"{claim.across}\n{claim.measured:.4g} {claim.comparison} {claim.bound:.4g}",
                "[dim]short run[/]" if self.smoke else result,
            )
        return table


class Page:
    """A page of a paper or a workflow.

    It provides the seeds, whether the run is short, and the folder for figures. It collects claims
    and figures, and reports them at the end.

    :param str slug: short name of the page, as in :class:`Report`.
    :param str paper: the paper, as a reference.
    :param int num_threads: number of PyTorch's threads, or ``None`` for all that are available.
    :param str reconstruction: as in :class:`Report`.
    :ivar tuple seeds: the seeds to run with, see :func:`seeds`.
    :ivar bool smoke: whether this is a short run, which only shows that the page works. It is if
        ``PYRO_EXT_SMOKE`` is set to anything other than 0.
    :ivar folder: the folder for figures and the report: ``PYRO_EXT_FIGURES``, by default a folder
        in ``figures`` with the name of the page. It is created for the first figure.
    :ivar list claims: the claims so far.
    :ivar dict figures: paths of the figures so far, by name.

    Example::

        >>> page = Page("counting", paper="A. Author (2020), Counting")
        >>> num_steps = page.length(1000, smoke=10)
        >>> claim = page.claim("Three is less than four.", 3, "<", 4, source="arithmetic")
        >>> claim.holds, claim.values == dict.fromkeys(page.seeds, 3.0)
        (True, True)
        >>> page.table({"three": {"value": 3.0}, "four": {"value": 4.0}}, title="number")
        number    value
        three     3.000
        four      4.000
    """

    def __init__(
        self, slug: str, *, paper: str = "", num_threads: int | None = 1, reconstruction: str = ""
    ) -> None:
        _check_slug("slug", slug)
        import torch  # listing pages needs this module, and no PyTorch

        from pyro_ext._lib import checks

        checks.instance("paper", paper, str, "text")
        checks.instance("reconstruction", reconstruction, str, "text")
        if num_threads is not None:
            torch.set_num_threads(checks.integer("num_threads", num_threads, 1))
        self.slug, self.paper, self.seeds = slug, paper, seeds()
        self.reconstruction = reconstruction
        self.smoke = is_smoke()
        self.folder = Path(os.environ.get(FIGURES_VARIABLE, f"figures/{slug}"))
        self.claims: list[Claim] = []
        self.figures: dict[str, Path] = {}
        self._started = time.perf_counter()

    def length(self, full: _Value, smoke: _Value) -> _Value:
        """Return the second argument in a short run, otherwise the first.

        :param full: a number of steps, draws or the like for a full run.
        :param smoke: the same for a short run.
        """
        return smoke if self.smoke else full

    def claim(
        self,
        statement: str,
        values: Mapping[int, float] | float,
        comparison: Comparison,
        bound: float,
        *,
        source: str,
        across: Across = "every seed",
        reason: str | None = None,
        central: bool = False,
    ) -> Claim:
        """Make a :class:`Claim`. Write its statement as a literal, so that ``pyro-ext list`` works.

        The other arguments are those of :class:`Claim`.

        :param values: as in :class:`Claim`, or one number that does not depend on a seed.
        """
        if _is_number(values):
            values = dict.fromkeys(self.seeds, values)
            across = "one number"
        claim = Claim(statement, values, comparison, bound, source, across, reason, central)
        self.claims.append(claim)
        return claim

    def figure(self, name: str, figure: Any, *, dpi: float = 120, despine: bool = False) -> Any:
        """Save a matplotlib figure as a picture, describe it in words, and close it.

        :param str name: name of the picture, as in the figures of :class:`Report`.
        :param Figure figure: the figure.
        :param float dpi: dots per inch.
        :param bool despine: whether to hide the top and right spines of all axes.
        :returns: the figure, which a notebook shows.
        """
        import matplotlib.pyplot as plt

        from pyro_ext.reproduction.figure_text import describe_figure

        _check_slug("name", name)
        if despine:
            for axes in figure.axes:
                axes.spines[["top", "right"]].set_visible(False)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.png"
        save_picture(figure, path, dpi=dpi, metadata={"Description": describe_figure(figure)})
        plt.close(figure)
        self.figures[name] = path
        return figure

    def table(
        self,
        rows: Mapping[str, Mapping[str, object]],
        *,
        title: str = "",
        number_format: str = ".3f",
    ) -> None:
        """Print a table.

        :param Mapping rows: the cells, by names of rows and columns. The first row sets the order
            of the columns.
        :param str title: heading of the column of row names.
        :param str number_format: format of floating-point numbers, as in ``format``.
        :raises ValueError: if there are no rows, or rows have different columns.
        """
        if not rows:
            raise ValueError(f"rows must have at least one row, got {rows!r}")
        columns = list(next(iter(rows.values())))
        lines = [[title, *columns]]
        for name, row in rows.items():
            if set(row) != set(columns):
                raise ValueError(
                    f"rows must all have the columns {columns}, got {list(row)} in {name!r}"
                )
            values = [row[column] for column in columns]
            cells = [f"{x:{number_format}}" if isinstance(x, float) else str(x) for x in values]
            lines.append([name, *cells])
        first, *widths = (max(map(len, column)) + 2 for column in zip(*lines, strict=True))
        for name, *cells in lines:
            others = zip(cells, widths, strict=True)
            print(f"{name:{first}}" + "".join(f"{cell:>{width}}" for cell, width in others))

    def finish(self, settings: Mapping[str, Any] | None = None) -> None:
        """Report the claims: print them, save them with the figures, and exit if one fails.

        :param Mapping settings: as in :class:`Report`; the seeds are added.
        :raises ValueError: if there are no claims, or JSON cannot represent a setting; the report
            is saved first, with such settings as text.
        :raises SystemExit: if a claim fails.
        """
        held: dict[str, Any] = {"seeds": self.seeds}
        refused = {}
        for key, value in (settings or {}).items():
            try:
                held |= _as_in_json({key: value})
            except (TypeError, ValueError, RecursionError):
                held[str(key)] = refused[key] = repr(value)
        report = Report(
            self.slug,
            self.claims,
            paper=self.paper,
            settings=held,
            figures=self.figures,
            reconstruction=self.reconstruction,
            seconds=time.perf_counter() - self._started,
            smoke=self.smoke,
        )
        report.print()
        report.save(self.folder)
        if refused:
            wanted = (
                "plain values that JSON can represent; the report is saved with text in their place"
            )
            raise ValueError(f"settings must be {wanted}, got {refused}")
        report.exit()


def _check_slug(argument: str, name: Any) -> None:
    if not isinstance(name, str) or not _SLUG.fullmatch(name):
        raise ValueError(
            f"{argument} must consist of lowercase letters and digits with hyphens between words, "
            f"got {name!r}"
        )


def _is_number(value: Any) -> TypeIs[float]:
    """Tell whether a value is a real number of Python, NumPy or PyTorch."""
    if getattr(value, "shape", None) == ():
        value = value.item()
    return isinstance(value, numbers.Real)


def _as_in_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come back from a file."""
    return json_object(json.dumps(dict(settings), allow_nan=False))


def _claim_to_json(claim: Claim) -> dict[str, Any]:
    """Fields of a claim, with the seeds in a list, and numbers that JSON lacks as text."""
    values = [{"seed": seed, "value": _to_json(value)} for seed, value in claim.values.items()]
    computed = {"measured": _to_json(claim.measured), "holds": claim.holds}
    return asdict(claim) | {"values": values} | computed


def _claim_from_json(content: dict[str, Any]) -> Claim:
    values = {row["seed"]: float(row["value"]) for row in content["values"]}
    fields = {name: one for name, one in content.items() if name not in ("measured", "holds")}
    return Claim(**fields | {"values": values})


def _to_json(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)
