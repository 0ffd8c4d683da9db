"""CPU seconds by stage of a process that runs our NUTS by the shortest call.

A first process of each posterior of ``cold_start.py``, whose cache of machine code is empty, and a
second one. Each stage is counted without those within it, and with its child processes.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

from _common import OURS, Case, Options, Timings, main
from cold_start import POSTERIORS

IMPORTS, REST = "importing", "the rest"
STAGES = {
    "pyro_ext.inference.vectorized.kernel.VectorizedKernel.setup": "recording the density",
    "pyro_ext.inference.vectorized.compiled_loop.capture_abstract": "recording the transitions",
    "pyro_ext.inference.vectorized.compiled_loop.compile_graph": "compiling, in Python",
    "pyro_ext.potential.compilation._built_side_by_side": "compiling, in C++",
    "pyro_ext.inference.hmc.loop.TransitionLoop._agrees": "comparing with the graph",
    "pyro_ext.inference.vectorized.compiled_loop.CompiledLoop.__call__": "drawing, compiled",
    "pyro_ext.inference.hmc.masses.Masses.estimated": "mass matrices",
    "pyro_ext.inference.driver.driver.Driver._advance": "warm-up and draws, in Python",
}
"""Names of the timed stages, by where they are defined."""


class Watch:
    """Charges CPU time to the innermost stage that runs."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._stage, self._since = IMPORTS, 0.0

    def switch(self, stage: str) -> str:
        """Go over to another stage; returns the one before."""
        now = sum(os.times()[:4])
        self.seconds[self._stage] += now - self._since
        self._stage, self._since, before = stage, now, self._stage
        return before

    def time(self, path: str, stage: str) -> None:
        """Replace a function by one that is timed."""
        import pkgutil

        owner = pkgutil.resolve_name(path.rpartition(".")[0])
        name = path.rpartition(".")[2]
        function: Callable[..., Any] = getattr(owner, name)

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            before = self.switch(stage)
            try:
                return function(*args, **kwargs)
            finally:
                self.switch(before)

        setattr(owner, name, timed)


def watched(name: str) -> None:
    """Run a posterior, and print the seconds of each stage."""
    watch = Watch()
    import _cold_ours

    for path, stage in STAGES.items():
        watch.time(path, stage)
    watch.switch(REST)
    _cold_ours.run(name)
    watch.switch(REST)
    print(json.dumps(watch.seconds))


def stages(name: str, cache: str) -> dict[str, float]:
    """Seconds of the stages of a process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": cache}
    environment["TORCHINDUCTOR_CACHE_DIR"] = f"{cache}/torch"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import first_call as f; f.watched({name!r})"],
        cwd=Path(__file__).parent,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.strip().rpartition("\n")[2])
    return found


def cases(options: Options) -> Iterator[Case]:
    """Each posterior in a first and in a second process."""
    names = (*POSTERIORS, "network") if options.full else POSTERIORS
    for name in names[:1] if options.smoke else names:
        rounds: dict[str, list[dict[str, float]]] = {"first": [], "second": []}
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as cache:
                for which in rounds:
                    rounds[which].append(stages(name, cache))
        for which, found in rounds.items():
            sides = {OURS: [sum(each.values()) for each in found]}
            for stage in (IMPORTS, *STAGES.values(), REST):
                sides[f"{OURS}, {stage}"] = [each.get(stage, 0.0) for each in found]
            yield Case(f"{name}, {which} process", Timings(sides))


if __name__ == "__main__":
    main(cases, "s", rounds=3)
