"""A table of the names on each page of the API, with a line for each, above all else."""

import re
from importlib import import_module
from itertools import groupby

from sphinx.application import Sphinx

DIRECTIVE = re.compile(
    r"^\.\. auto(module|class|function|exception|data):: (\S+)\n((?:   .*\n)*)", re.M
)


def setup(app: Sphinx) -> dict[str, bool]:
    """Make it known to Sphinx."""
    app.setup_extension("sphinx.ext.autosummary")
    app.connect("source-read", _add_table)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _add_table(app: Sphinx, document: str, source: list[str]) -> None:
    if not document.startswith("api/") or not (first := DIRECTIVE.search(source[0])):
        return
    names = []
    for kind, name, options in DIRECTIVE.findall(source[0]):
        if kind != "module":
            names.append(name)
        elif ":no-members:" not in options:
            hidden = re.findall(r"\w+", options.partition(":exclude-members:")[2])
            members = import_module(name).__all__
            names += [f"{name}.{member}" for member in members if member not in hidden]
    tables = ""
    for module, group in groupby(dict.fromkeys(names), lambda name: name.rpartition(".")[0]):
        # Short names are those of the module, here and in the lines.
        rows = "".join(f"   {name.removeprefix(module + '.')}\n" for name in group)
        tables += f".. currentmodule:: {module}\n\n.. autosummary::\n   :nosignatures:\n\n{rows}\n"
    source[0] = source[0][: first.start()] + tables + source[0][first.start() :]
