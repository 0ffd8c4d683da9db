"""Machine code comes from disk where nothing that it was made from has changed, and only there."""

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import pytest
from numba.core.errors import NumbaWarning

from pyro_ext._lib.compiled import compiled

CALLEE = '''
from typing import NamedTuple
import numpy as np
from numba.extending import register_jitable
from pyro_ext._lib.compiled import compiled

RATE = 2
TABLE = np.array([5.0, 6.0])

class Pair(NamedTuple):
    left: float
    right: float

@compiled
def scaled(x):
    """Scale."""
    return RATE * x

@compiled
def looked_up(i):
    return TABLE[i]

@compiled
def left_of(pair):
    return pair.left

def multiplication(factor):
    @compiled
    def multiply(x):
        return factor * x
    return multiply

multiplied = multiplication(3)

@register_jitable
def halved(x):
    return x / 2
'''

CALLER = """
from compiled_callee import Pair, halved, left_of, looked_up, multiplied, scaled
from pyro_ext._lib.compiled import compiled

@compiled
def outer(x):
    return scaled(x) + later(x)

@compiled(fastmath={"nsz", "nnan", "ninf"})
def later(x):
    return 100 if x <= 0 else later(x - 1)

@compiled
def first():
    return looked_up(0)

@compiled
def half(x):
    return halved(x)
"""

Run = Callable[[str], tuple[Any, bool]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Import two modules anew and call a function: what it returns, and whether it was on disk."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "compiled_callee.py").write_text(CALLEE)
    (tmp_path / "compiled_caller.py").write_text(CALLER)

    def forget() -> None:
        for name in ("compiled_caller", "compiled_callee"):
            sys.modules.pop(name, None)

    def run(call: str) -> tuple[Any, bool]:
        forget()
        importlib.invalidate_caches()
        names = vars(importlib.import_module("compiled_caller"))
        value = eval(call, names)
        stats = names[call.partition("(")[0]].stats
        assert sum(stats.cache_hits.values()) + sum(stats.cache_misses.values()) == 1
        return value, bool(stats.cache_hits)

    yield run
    forget()


def edit(path: Path, old: str, new: str) -> None:
    assert old in (text := path.read_text())
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "call", "before", "after"),
    [
        ("return RATE * x", "return RATE * x + 1", "outer(1)", 102, 103),
        ("RATE = 2", "RATE = 3", "outer(1)", 102, 103),
        ("RATE = 2", "RATE = 2.5", "outer(1)", 102, 102.5),
        ("[5.0, 6.0]", "[7.0, 6.0]", "first()", 5.0, 7.0),
        (
            "left: float\n    right: float",
            "right: float\n    left: float",
            "left_of(Pair(1.0, 2.0))",
            1.0,
            2.0,
        ),
        ("multiplication(3)", "multiplication(4)", "multiplied(2)", 6, 8),
        ("x / 2", "x / 4", "half(2.0)", 1.0, 0.5),
        ("@compiled\ndef scaled", "@compiled(nogil=True)\ndef scaled", "outer(1)", 102, 102),
    ],
)
def test_change_of_what_a_function_refers_to_is_seen(
    run: Run, tmp_path: Path, old: str, new: str, call: str, before: float, after: float
) -> None:
    assert run(call) == (before, False)
    assert run(call) == (before, True)
    edit(tmp_path / "compiled_callee.py", old, new)
    assert run(call) == (after, False)


def test_other_edits_compile_nothing(run: Run, tmp_path: Path) -> None:
    assert run("outer(1)") == (102, False)
    assert run("first()") == (5.0, False)
    for path in (tmp_path / "compiled_callee.py", tmp_path / "compiled_caller.py"):
        edit(path, "@compiled\ndef", "\n# A comment.\n\n@compiled\ndef")
    edit(tmp_path / "compiled_callee.py", "Scale.", "Scale a number.")
    assert run("outer(1)") == (102, True)
    edit(tmp_path / "compiled_callee.py", "RATE * x", "x * RATE + 1")
    assert run("first()") == (5.0, True)
    assert run("outer(1)") == (103, False)


def test_damaged_entry_is_compiled_anew(run: Run, tmp_path: Path) -> None:
    run("first()")
    (path,) = (tmp_path / "cache").rglob("first-*.nbc")
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (b"garbage", flipped):
        path.write_bytes(damaged)
        assert run("first()") == (5.0, False)
        assert run("first()") == (5.0, True)
        for entry in path.parent.glob("first-*.nbc"):
            entry.unlink()


def test_folder_that_others_write_to_is_not_looked_at(run: Run, tmp_path: Path) -> None:
    run("first()")
    (tmp_path / "cache" / "pyro_ext").chmod(0o777)
    assert run("first()") == (5.0, False)


def test_function_of_another_process_is_loaded(run: Run, tmp_path: Path) -> None:
    code = "import compiled_caller as c; c.outer(1); print(*c.outer.stats.cache_hits.values())"
    environment = {
        "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}",
        "PYTHONHASHSEED": "1",
        "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
    }
    run("outer(1)")
    command = [sys.executable, "-B", "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "1\n"


def test_function_that_refers_to_what_may_change_unseen_is_not_cached(
    run: Run, tmp_path: Path
) -> None:
    edit(
        tmp_path / "compiled_caller.py",
        "from compiled_callee",
        "import compiled_callee\nfrom compiled_callee",
    )
    edit(
        tmp_path / "compiled_caller.py",
        "return looked_up(0)",
        "return compiled_callee.looked_up(0)",
    )
    for _ in range(2):
        with pytest.warns(
            NumbaWarning, match="first.* is not cached: .*compiled_callee.* may change"
        ):
            assert run("first()") == (5.0, False)


@pytest.mark.parametrize("module", [{}, {"__name__": "no module"}])
def test_function_without_a_module_is_compiled_each_time(module: dict[str, Any]) -> None:
    for _ in range(2):
        names = {"compiled": compiled, **module}
        exec("@compiled\ndef increased(x):\n    return x + 1", names)
        assert names["increased"](1) == 2
        assert not names["increased"].stats.cache_hits
