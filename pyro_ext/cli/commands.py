"""Commands of ``pyro-ext``, one function each."""

import json
import os
import sys
import webbrowser
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyro_ext import __version__

if TYPE_CHECKING:
    from pyro_ext.reproduction.pages import Script

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    help="pyro_ext: inference kernels and diagnostics for Pyro models.",
    no_args_is_help=True,
    add_completion=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Options of the command itself."""


def _output(text: str) -> Any:
    """The option ``--output``, of a folder that is written to."""
    return typer.Option(help=text, file_okay=False, writable=True)


def _make(output: Path) -> None:
    """Make the folder of ``--output``, before any work begins."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise typer.BadParameter(
            f"{output} cannot be created: {reason}", param_hint="--output"
        ) from error


@app.command()
def demo(
    output: Annotated[Path, _output("Folder for the posteriors and the picture.")] = Path("demo"),
    num_samples: Annotated[int, typer.Option(min=10, help="Draws from each chain.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all randomness.")] = 0,
) -> None:
    """Estimate the number of distinct words of a text from a part of it, in three ways."""
    from pyro_ext._lib.optional import optional_module

    optional_module("matplotlib", "demo", "matplotlib", "demo")  # now, and not after sampling
    _make(output)
    # Looks upward, as only this module may, and late: help should not wait for PyTorch.
    from pyro_ext.tutorials import demo as page

    page.run(output, num_samples, seed)


_REPORTS = "Folder of the reports and figures, with a folder for each page."


def _pages() -> "list[Script]":
    # Only their folder: a page runs when it is imported.
    from pyro_ext.reproduction.pages import find_pages
    from pyro_ext.tutorials import papers

    return find_pages(Path(papers.__path__[0]))


def _tutorials() -> "list[Script]":
    """Workflows and papers, without the demonstration, which is a program."""
    from pyro_ext import tutorials
    from pyro_ext.reproduction.pages import find_pages

    workflows = find_pages(Path(tutorials.__path__[0]))
    return [*(page for page in workflows if page.slug != "demo"), *_pages()]


@app.command(name="list")
def list_pages(output: Annotated[Path, typer.Option(help=_REPORTS)] = Path("figures")) -> None:
    """List the pages of papers, their claims, and the results of their last runs."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from pyro_ext.reproduction.pages import last_result

    table = Table("slug", "page and its claims", "last result", show_lines=True)
    for page in _pages():
        claims = "".join(f"\n- {escape(statement)}" for statement in page.statements)
        table.add_row(
            page.slug, f"[bold]{escape(page.title)}[/]{claims}", escape(last_result(page, output))
        )
    Console().print(table)


@app.command()
def reproduce(
    slugs: Annotated[
        list[str] | None,
        typer.Argument(metavar="SLUG", help="Pages, as `list` names them, or scripts of your own."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Run all pages.")] = False,
    output: Annotated[Path, _output(_REPORTS)] = Path("figures"),
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option(min=3, help="Number of seeds.")] = 3,
    jobs: Annotated[
        int, typer.Option(min=1, help="Number of pages to run at once; they print to files.")
    ] = 1,
    again: Annotated[
        bool, typer.Option("--again", help="With --all: repeat pages that have run.")
    ] = False,
) -> None:
    """Run pages of papers and check their claims; exit with an error if a claim fails.

    With --all, it writes a scoreboard of all pages to the output folder, as HTML, Markdown and
    JSON, and continues from where it stopped.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from pyro_ext.reproduction.pages import check_modules, choose, last_outcome, run_pages
    from pyro_ext.reproduction.scoreboard import write_scoreboard

    if every == bool(slugs):
        raise typer.BadParameter("give either slugs of pages or --all; `pyro-ext list` shows them")
    pages = _pages()
    try:
        chosen = pages if every else choose(pages, slugs or [])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    for page in chosen:
        check_modules(page)
    _make(output)
    numbers = range(seed, seed + seeds)
    found = {}
    if every and not again:
        kept = ((page.slug, last_outcome(page, output, numbers)) for page in pages)
        found = {slug: outcome for slug, outcome in kept if outcome}
    left = [page for page in chosen if page.slug not in found]
    if found:
        typer.echo(f"{len(found)} pages have run with this version; --again runs them too")
    for outcome in run_pages(left, output, numbers, jobs):
        typer.echo(f"{outcome.page.slug}: {outcome.verdict}, {outcome.seconds:.0f} s")
        found[outcome.page.slug] = outcome
        if every:  # after each page, since it may be stopped
            write_scoreboard([found[page.slug] for page in pages if page.slug in found], output)
    outcomes = [found[page.slug] for page in chosen]
    table = Table("slug", "result", "seconds", "")
    for outcome in outcomes:
        table.add_row(
            outcome.page.slug,
            escape(outcome.verdict),
            f"{outcome.seconds:.0f}",
            "[green]passed[/]" if outcome.passed else "[bold red]FAILED[/]",
        )
    Console().print(table)
    if every:
        typer.echo(f"The scoreboard is {write_scoreboard(outcomes, output)}")
    if not all(outcome.passed for outcome in outcomes):
        raise typer.Exit(1)


@app.command()
def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the project and of its folder.")
    ],
) -> None:
    """Write a small project of your own: a model, a run, a test and a page."""
    from pyro_ext.cli.new_project import write_project

    try:
        folder = write_project(name, Path())
    except (ValueError, FileExistsError) as error:
        raise typer.BadParameter(str(error)) from error
    except OSError as error:
        raise typer.BadParameter(f"{name} cannot be created here: {error.strerror}") from error
    typer.echo(f"{folder} contains a model, a run, a test and a page. Next:\n")
    typer.echo(f"cd {folder}")
    for module, command in {
        "matplotlib": "python -m pip install 'pyro-ext[plots]'",
        "pytest": "python -m pip install pytest",
    }.items():
        if find_spec(module) is None:
            typer.echo(command)
    typer.echo("python run.py\npython -m pytest\npyro-ext reproduce page.py")


@app.command()
def notebooks(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write them.")],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Tutorials; all by default.")
    ] = None,
) -> None:
    """Write the tutorials as notebooks for Jupyter."""
    from pyro_ext import tutorials
    from pyro_ext.reproduction.notebooks import write_notebooks
    from pyro_ext.reproduction.pages import choose

    scripts = _tutorials()
    try:
        chosen = choose(scripts, names) if names else scripts
        written = write_notebooks(chosen, Path(tutorials.__path__[0]), folder)
    except (ValueError, FileExistsError) as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"{len(written)} notebooks are in {folder}, such as {written[0]}")
    typer.echo("To run all of them, use pip install 'pyro-ext[all]'")


@app.command()
def rate(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the images.")],
    concept: Annotated[str | None, typer.Option(help="What to look for in the images.")] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, max=12, help="Images to rank together; 1 asks yes or no.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="File of the page; FOLDER/rate.html by default.")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="File saved by a page, whose answers to add to the folder.")
    ] = None,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the browser.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of the images.")] = 0,
) -> None:
    """Write a page on which a person rates images, or add the answers that the page saved."""
    from pyro_ext._lib.files import write_bytes
    from pyro_ext.ratings import FILE_NAME, add_ratings, rating_page

    try:
        if answers is not None:
            found = add_ratings(folder, answers)
            number = len(found.names())
            typer.echo(
                f"{number} images rated, {len(found.skipped)} of them skipped: {folder / FILE_NAME}"
            )
            return
        text = rating_page(folder, concept=concept, rank=rank, seed=seed)
        page = page or folder / "rate.html"
        write_bytes(page, text.encode())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    except OSError as error:
        reason = f"{error.filename or folder} cannot be used: {error.strerror}"
        raise typer.BadParameter(reason) from error
    typer.echo(f"Rate the images on {page}, and save the answers there; then")
    typer.echo(f"pyro-ext rate {folder} --answers FILE")
    # Without a display there may be a browser in the terminal, which cannot show the page.
    if browser and (sys.platform != "linux" or {"DISPLAY", "WAYLAND_DISPLAY"} & {*os.environ}):
        webbrowser.open(page.absolute().as_uri())


@app.command()
def extrapolate(
    curve: Annotated[
        Path,
        typer.Argument(
            metavar="CURVE.csv", help="Sizes and values; rows without a value are predicted."
        ),
    ],
    at: Annotated[
        list[float] | None, typer.Option(help="Size to predict at; may be given several times.")
    ] = None,
    horizon: Annotated[
        float | None, typer.Option(help="Largest size that matters; 10 times the last by default.")
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="Number to divide values by; chosen by default.")
    ] = None,
    x: Annotated[str | None, typer.Option("--x", help="Column of sizes; the first one.")] = None,
    y: Annotated[str | None, typer.Option("--y", help="Column of values; the second one.")] = None,
    plot: Annotated[
        Path, typer.Option(help="Picture of the curve.", dir_okay=False, writable=True)
    ] = Path("extrapolation.png"),
) -> None:
    """Extrapolate a curve of error or loss to larger sizes, by a pretrained network."""
    from rich.console import Console
    from rich.table import Table

    from pyro_ext._lib.files import save_picture
    from pyro_ext._lib.optional import optional_module
    from pyro_ext.models.scaling_laws import extrapolate as predict
    from pyro_ext.models.scaling_laws import read_curve

    try:
        sizes, values, missing = read_curve(curve, 0 if x is None else x, 1 if y is None else y)
        asked = [*missing.tolist(), *(at or [])]
        found = predict(sizes, values, asked or None, horizon=horizon, scale=scale)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    _make(plot.parent)
    figures = optional_module("matplotlib.figure", "extrapolate", "matplotlib", "plots")
    figure = figures.Figure(figsize=(5.6, 3.6), layout="constrained")
    found.plot(figure.subplots())
    save_picture(figure, plot, dpi=150)
    table = Table("size", "median", "50 %", "90 %")
    ends = [found.interval(level) for level in (0.5, 0.9)]
    step = max(1, (len(found.query) - 1) // 8) if not asked else 1
    for row in range(0, len(found.query), step):
        bands = [f"{low[row]:.4g} to {high[row]:.4g}" for low, high in ends]
        table.add_row(f"{found.query[row]:.6g}", f"{found.median[row]:.4g}", *bands)
    Console().print(table)
    typer.echo(f"{plot} shows the curve")


@app.command()
def doctor(
    compile: Annotated[bool, typer.Option(help="Try the C++ compiler.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for bug reports.")] = False,
) -> None:
    """Show versions, devices, the compiler, threads, and what each extra lacks."""
    from rich.console import Console

    from pyro_ext.cli.doctor import diagnose

    if as_json:
        diagnosis = diagnose(compile=compile)
        typer.echo(json.dumps(diagnosis.to_json(), indent=2))
    else:
        console = Console()
        with console.status("Looking, and trying the C++ compiler" if compile else "Looking"):
            diagnosis = diagnose(compile=compile)
        diagnosis.print(console)
    raise typer.Exit(diagnosis.status)


def main() -> None:
    """Run the command."""
    from pyro_ext._lib.optional import MissingModuleError

    try:
        app()
    except MissingModuleError as error:  # what it says is all there is to know
        typer.echo(str(error), err=True)
        raise SystemExit(1) from None
