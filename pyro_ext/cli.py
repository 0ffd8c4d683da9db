"""The ``pyro-ext`` command: the door of the house."""

from pathlib import Path
from typing import Annotated

import typer

from pyro_ext import __version__

__all__ = ["app", "main"]

app = typer.Typer(
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


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the posterior and the plots.")] = Path(
        "demo"
    ),
    num_chains: Annotated[int, typer.Option(min=1, help="Number of chains.")] = 8,
    num_draws: Annotated[int, typer.Option(min=4, help="Draws of each chain, one a cycle.")] = 50,
    cycle_length: Annotated[int, typer.Option(min=1, help="Steps in a cycle.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all randomness.")] = 0,
) -> None:
    """Sample a Bayesian network on handwritten digits and diagnose it with ArviZ."""
    # Looks upward, as only this module may, and late: help should not wait for PyTorch.
    from pyro_ext.tutorials import demo as page

    page.run(output, num_chains, num_draws, cycle_length, seed)


def main() -> None:
    """Run the command."""
    app()
