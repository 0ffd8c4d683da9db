"""Whole processes of NUTS: ours by the shortest call, and NumPyro's, until the last draw.

Each side imports, compiles and samples four chains in a process of its own, and nothing else: ours
in a first one, whose cache of machine code is empty, and in a second one; NumPyro compiles in each.
Seconds are CPU time, that of compilers in child processes included, and by the clock. Posteriors
are eight schools, a regression (434 rows), an autoregression of order five (200 steps), a hierarchy
of 85 groups (919 rows) and a network (digits, 985 parameters).
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from _common import OURS, Case, Options, Timings, main

POSTERIORS = ("eight schools", "regression", "autoregression", "hierarchy", "network")
REPORT = "import os; print(sum(os.times()[:4]))"


def measured(side: str, name: str, cache: str) -> tuple[float, float]:
    """CPU seconds and seconds by the clock of a process."""
    code = f"import _cold_{side}; _cold_{side}.run({name!r}); {REPORT}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    environment |= {"XDG_CACHE_HOME": cache, "TORCHINDUCTOR_CACHE_DIR": f"{cache}/torch"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=Path(__file__).parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2])
    return float(done.stdout.strip().rpartition("\n")[2]), seconds


def cases(options: Options) -> Iterator[Case]:
    """Each posterior in a first and in a second process."""
    for name in POSTERIORS[:1] if options.smoke else POSTERIORS:
        rounds: dict[str, list[tuple[float, float]]] = {"first": [], "second": [], "numpyro": []}
        missing = {}
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as cache:
                for which in ("first", "second"):
                    rounds[which].append(measured("ours", name, cache))
                try:
                    rounds["numpyro"].append(measured("numpyro", name, cache))
                except RuntimeError as error:
                    missing["NumPyro"] = str(error)[:200]
        for which in ("first", "second"):
            for index, unit in enumerate(("CPU s", "s by the clock")):
                sides = {OURS: [pair[index] for pair in rounds[which]]}
                if not missing:
                    sides["NumPyro"] = [pair[index] for pair in rounds["numpyro"]]
                case = f"NUTS, {name}, {which} process"
                yield Case(case, Timings(sides, missing), unit=unit)


if __name__ == "__main__":
    main(cases, "s", rounds=3, packages=("numpyro", "jax"))
