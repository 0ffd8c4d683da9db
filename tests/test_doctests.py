"""The examples in docstrings run and print what they say."""

import doctest
import importlib
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

PACKAGE = Path(__file__).resolve().parents[1] / "pyro_ext"
# Tutorials are run as pages; the rest of pyro_ext is the folder itself and two links in it.
FOLDERS = (PACKAGE, PACKAGE / "inference", PACKAGE / "models", PACKAGE.with_name("tools"))
NAMES = {"dist": dist, "pyro": pyro, "torch": torch}  # what every example may use
SLOW = ("pyro_ext.inference.smc.huggingface",)  # transformers takes seconds to import
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_names() -> list[str]:
    paths = {path for folder in FOLDERS for path in folder.rglob("*.py")}
    return sorted(
        module_name(path)
        for path in paths
        if path.stem != "__main__"
        and "tutorials" not in path.parts[len(PACKAGE.parts) :]
        and ">>> " in path.read_text(encoding="utf-8")
    )


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in module_names()]
)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    failures, _ = doctest.testmod(module, extraglobs=NAMES, optionflags=FLAGS)
    assert failures == 0
