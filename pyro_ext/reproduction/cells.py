"""Run a script of percent cells, and mark in its output where each cell begins."""

import ast
import os
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from types import ModuleType

MARK = "\x1e"  # "record separator", which no page prints


def run_cells(path: Path) -> None:
    """Run a script as the main module, and print a line with its number before each cell's output.

    Cells of code count from 0. The first needs no mark, since nothing is printed before it.
    """
    text = path.read_text("utf-8")
    tree = ast.parse(text, os.fspath(path))
    tree.body = list(_marked(tree.body, _first_lines(text)))
    main = ModuleType("__main__")
    main.__file__ = os.fspath(path)
    sys.modules["__main__"] = main  # where classes of the script are looked for
    exec(compile(tree, os.fspath(path), "exec"), main.__dict__)


def _first_lines(text: str) -> list[int]:
    """Numbers of the lines above which cells of code begin."""
    lines = enumerate(text.splitlines(), 1)
    return [number for number, line in lines if line.startswith("# %%") and "[" not in line]


def _marked(statements: list[ast.stmt], first_lines: list[int]) -> Iterator[ast.stmt]:
    def cell_of(statement: ast.stmt) -> int:
        return sum(line < statement.lineno for line in first_lines) - 1

    for number, group in groupby(statements, cell_of):
        if number > 0:
            line = f"{MARK}{number}\n"
            yield from ast.parse(f"__import__('sys').stdout.write({line!r})").body
        yield from group


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    if not sys.flags.safe_path:  # modules beside the script can be imported, as always
        sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    run_cells(Path(sys.argv[0]))
