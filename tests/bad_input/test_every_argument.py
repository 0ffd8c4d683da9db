"""Every public callable with wrong arguments: what is refused is refused by the argument's name.

An error has to be a ``ValueError`` or ``TypeError`` that names the argument, shows what it was and
says what is allowed. What is accepted though it looks wrong has a reason in ``accepted``.
"""

import ast
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bad_input.accepted import is_walked, reason_for
from tests.bad_input.walk import (
    REJECTED,
    Call,
    Outcome,
    attempt,
    beyond_range,
    is_clear,
    summary,
    walk,
    wrong_values,
)
from tests.test_docs import documented, packages, resolve

# What the modules beside this one list: calls by the module that they are of.
TABLES: dict[str, Callable[[], dict[str, Call]]] = {}
for path in sorted(Path(__file__).parent.glob("*.py")):
    if not path.name.startswith("test_"):
        with torch.random.fork_rng(devices=()):  # the same networks in every collection
            torch.manual_seed(0)
            module = importlib.import_module(f"tests.bad_input.{path.stem}")
        TABLES |= getattr(module, "TABLES", {})
SLOW = (  # what runs, or compiles, something with each value that it accepts
    "pyro_ext.diagnostics",
    "pyro_ext.diagnostics.diversity_plots",
    "pyro_ext.inference (partitions)",
    "pyro_ext.inference (kernels)",
    "pyro_ext.inference (coresets)",
    "pyro_ext.inference.pseudocoresets",
    "pyro_ext.inference.smc (language models)",
    "pyro_ext.models.diffusion (erasure)",
    "pyro_ext.models.ensembles (diffusion bridges)",
    "pyro_ext.inference.privacy",
    "pyro_ext.models.nonparametric",
    "pyro_ext.models.diffusion (rewards)",
    "pyro_ext.models.diffusion (exits)",
    "pyro_ext.models.diffusion (feedback)",
    "pyro_ext.models.graphs",
    "pyro_ext.models.time_series",
    "pyro_ext.nn (vector fields)",
)


def function_of(module: Any, name: str, valid: Call) -> Any:
    """The callable of an entry, of which a second word says what it is called with."""
    first, *rest = name.split(" ")[0].split(".")
    function = getattr(module, first) if valid.instance is None or not rest else valid.instance
    for part in rest:
        function = getattr(function, part)
    return function


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in TABLES]
)
def test_wrong_arguments_are_refused_by_name(name, subtests, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # "abc" is a folder to some
    module = importlib.import_module(name.split(" ")[0])
    outcomes: list[Outcome] = []
    for entry, valid in TABLES[name]().items():
        function = function_of(module, entry, valid)
        with subtests.test(entry):
            valid.run(function, {})  # which has to work
            found = list(walk(f"{name.removeprefix('pyro_ext.')}.{entry}", function, valid))
            outcomes += found
            strange = [o for o in found if not reason_for(o)]
            assert not [o for o in strange if o.kind in ("raw", "hanging", "accepted")]
    rejected = [o for o in outcomes if o.kind in REJECTED]
    unclear = [o for o in rejected if o.kind != "clear"]
    with capsys.disabled():
        print(f"\n{name}: {summary(outcomes)}")
    assert len(unclear) <= 0.05 * len(rejected), unclear


def test_every_public_callable_has_a_valid_call():
    known = {
        f"{name.split(' ')[0]}.{entry.split(' ')[0]}"
        for name, table in TABLES.items()
        for entry in entries_of(table)
    }
    objects = {id(resolve(name)) for name in known}
    names, _ = documented()
    modules = {name for name in names if inspect.ismodule(resolve(name))}
    missing = []
    for package in sorted({*packages(), *modules} - {"pyro_ext.testing"}):
        module = importlib.import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            if needs_a_call(value) and is_walked(f"{package}.{name}"):
                missing += [f"{package}.{name}"] if id(value) not in objects else []
    assert not missing, "give these a valid call in tests/bad_input, or a reason in accepted.py"


def entries_of(table: Callable[[], dict[str, Call]]) -> set[str]:
    """Names of the entries of a table, without making their values."""
    (function,) = ast.parse(inspect.getsource(table)).body
    assert isinstance(function, ast.FunctionDef)
    returned = function.body[-1]
    assert isinstance(returned, ast.Return) and isinstance(returned.value, ast.Dict)
    return {ast.literal_eval(key) for key in returned.value.keys if key is not None}


def needs_a_call(value: Any) -> bool:
    """Whether it is a function, or a class that people make instances of."""
    if not inspect.isclass(value) or inspect.isabstract(value):
        return inspect.isfunction(value)
    is_kind = issubclass(value, BaseException | dict) or getattr(value, "_is_protocol", False)
    return not (is_kind or hasattr(value, "_fields"))


# That the walk itself can fail.


def scale(x: torch.Tensor, factor: float) -> torch.Tensor:
    if factor <= 0:
        raise ValueError("out of range")
    if x.dim() > 1:
        raise ValueError(f"x must have the shape (n,), got {tuple(x.shape)}")
    return factor * x


def test_the_walk_tells_clear_from_raw():
    valid = Call({"x": torch.ones(3), "factor": 2.0})
    kinds = {(o.argument, o.value): o.kind for o in walk("scale", scale, valid)}
    assert kinds["x", "another dimension"] == "clear"
    assert kinds["x", "'abc'"] == "raw" and kinds["x", "with nan"] == "accepted"
    assert kinds["x", "list"] == "raw" and ("x", "torch.float64") not in kinds
    assert kinds["factor", "0"] == "unclear" and kinds["factor", "None"] == "unclear"
    assert ("x", "NumPy") in kinds


def test_a_message_is_clear_if_it_names_and_shows():
    assert is_clear("rate must be > 0, got -1", "rate", -1)
    assert not is_clear("must be > 0, got -1", "rate", -1)
    assert not is_clear("generate must be > 0, got -1", "rate", -1)
    assert not is_clear("rate is bad", "rate", -1)


def test_what_does_not_return_is_told(monkeypatch):
    monkeypatch.setattr("tests.bad_input.walk.SECONDS", 0.05)

    def forever() -> None:
        while True:
            pass

    assert attempt(forever)[0] == "hanging"
    assert "a class" in wrong_values(torch.ones(2)) and not wrong_values(True)


def test_what_lies_beyond_a_range() -> None:
    """What an error says is allowed has an outside, of which the walk tries the nearest numbers."""
    assert beyond_range("n must be an integer >= 2, got 'abc'", "n") == {"not >= 2": 1}
    found = beyond_range("rate must be a finite number > 0 and <= 4, got nan", "rate")
    assert found == {"not > 0": 0.0, "not <= 4": 4.000004}
    assert not beyond_range("n must be an integer >= 2, got 'abc'", "m")
    assert not beyond_range("n must be text, got 3", "n")
