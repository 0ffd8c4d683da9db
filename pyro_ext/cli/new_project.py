"""The small project that ``pyro-ext new`` writes."""

import os
import re
import tempfile
from importlib import metadata
from pathlib import Path

from pyro_ext import __version__

_TEMPLATES = Path(__file__).with_name("project")
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def write_project(name: str, parent: Path) -> Path:
    """Write a project with a model, a run, a test and a page; all of it, or nothing.

    :param str name: the name of the project and of its folder.
    :param Path parent: the folder to put it in.
    :returns: the folder of the project.
    :raises ValueError: for a name that cannot be used.
    :raises FileExistsError: if something with that name exists.
    """
    from jinja2 import Environment, StrictUndefined

    folder = parent / _checked(name)
    if os.path.lexists(folder):
        raise FileExistsError(f"NAME must be new here, and {folder} exists")
    environment = Environment(keep_trailing_newline=True, undefined=StrictUndefined)
    words = {"name": name, "title": name.replace("-", " ").capitalize(), "version": __version__}
    # On the same disk, so that one rename makes all files appear at once.
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=parent) as scratch:
        unfinished = Path(scratch, name)
        unfinished.mkdir()
        for template in sorted(_TEMPLATES.glob("*.jinja")):
            target = template.stem if template.stem != "gitignore" else ".gitignore"
            text = environment.from_string(template.read_text("utf-8")).render(words)
            (unfinished / target).write_text(text, "utf-8")
        unfinished.rename(folder)
    return folder


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            "NAME must consist of lowercase letters and digits, with hyphens between words, and "
            f"begin with a letter, got {name!r}"
        )
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return name
    raise ValueError(f"NAME must not be that of an installed package, got {name!r}")
