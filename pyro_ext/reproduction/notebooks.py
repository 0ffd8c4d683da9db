"""Notebooks of the tutorials, which ``pyro-ext notebooks`` writes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyro_ext._lib.files import write_bytes
from pyro_ext._lib.optional import optional_module
from pyro_ext.reproduction.pages import Script


def to_notebook(script: Script) -> Any:
    """Turn a script of percent cells into a notebook; its docstring follows the title."""
    jupytext = optional_module("jupytext", "a notebook", "jupytext", "notebooks")
    notebook = jupytext.reads(script.path.read_text("utf-8"), fmt="py:percent")
    first = notebook.cells[1]
    title, _, text = first.source.partition("\n")
    first.source = f"{title}\n\n*{script.title}*\n{text}".rstrip()
    notebook.cells = notebook.cells[1:]  # without the docstring
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def write_notebooks(scripts: Sequence[Script], root: Path, output: Path) -> list[Path]:
    """Write notebooks of tutorials, with the same folder structure.

    :param scripts: the tutorials.
    :param Path root: the folder that contains all of them.
    :param Path output: the folder of the notebooks, which is created if it is missing.
    :returns: paths of the notebooks.
    :raises FileExistsError: if one of them exists; then none is written.
    """
    jupytext = optional_module("jupytext", "a notebook", "jupytext", "notebooks")
    targets = [output / script.path.relative_to(root).with_suffix(".ipynb") for script in scripts]
    for target in targets:
        if os.path.lexists(target):
            raise FileExistsError(f"{target} exists, and may contain your changes")
    for script, target in zip(scripts, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, jupytext.writes(to_notebook(script), fmt="ipynb").encode())
    return targets
