"""NUTS by the default call on 44 posteriors of posteriordb and five wider ones, beside its peers.

Each sampler has a process of its own on each posterior (``_posteriordb_sides.py``), ours two: one
that compiles, and one that finds the machine code. A run is worth the effective draws of its worst
unconstrained coordinate; one whose R-hat is above 1.01 is worth nothing. Draws of ours are compared
with the reference, which has 10,000.

``make posteriordb`` runs all, which takes two to four hours, and writes the page of the site; what
has been measured is kept, and a run that was stopped goes on.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import numpy.typing as npt
from _page import PAGE as SPEED
from _page import short, with_lines
from _posteriors import POSTERIORS
from table import machine

Array = npt.NDArray[Any]
Found = dict[str, Any]

PAGE = SPEED.with_name("posteriordb.md")
KEPT = PAGE.with_suffix(".json")
OURS, DIAGONAL, NUMPYRO = "pyro_ext", "pyro_ext, diagonal", "NumPyro"
SIDES = (OURS, DIAGONAL, NUMPYRO, "nutpie, low rank", "nutpie, diagonal", "BlackJAX")
PAIRS = (
    (OURS, NUMPYRO),
    (OURS, "nutpie, low rank"),
    (DIAGONAL, "nutpie, diagonal"),
    (OURS, "BlackJAX"),
)
PACKAGES = {
    "arviz": "arviz",
    "blackjax": "blackjax",
    "jax": "jax",
    "numpyro": "numpyro",
    "nutpie": "nutpie",
    "pyro-ext": "pyro_ext",
    "pyro-ppl": "pyro",
    "torch": "torch",
}
"""Packages whose versions are reported, and the names they are imported by."""
MOST_RHAT = 1.01
MOST_ERRORS = 5.0
"""Standard errors; chance alone takes hardly any of 1,380 comparisons beyond them."""
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


# Measuring ----------------------------------------------------------------------------------------


def measured(name: str, side: str, timeout: float) -> Found:
    """Run a side on a posterior; returns what it gives, or the error with which it ended."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/draws.npz"
        command = [sys.executable, "_posteriordb_sides.py", side, name, out]
        environment = {**os.environ, **ONE_THREAD}
        environment |= {"XDG_CACHE_HOME": folder, "TORCHINDUCTOR_CACHE_DIR": f"{folder}/torch"}
        firsts = []
        for _ in range(2 if side == OURS else 1):
            try:
                done = subprocess.run(
                    command,
                    cwd=Path(__file__).parent,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=True,
                    timeout=timeout,
                )
            except subprocess.TimeoutExpired:
                return {"error": f"it took longer than {timeout:g} s"}
            except subprocess.CalledProcessError as error:
                return {"error": (error.stderr.strip().splitlines() or ["no message"])[-1][:200]}
            found: Found = json.loads(done.stdout.strip().rpartition("\n")[2])
            firsts.append(found["first"])
        found["first"], found["second"] = firsts[0], firsts[-1]
        with np.load(out) as arrays:
            draws = dict(arrays)
    found |= worth(draws.pop("positions"))
    if draws and POSTERIORS[name].reference:
        found["errors"], found["worst"] = distance(draws, POSTERIORS[name].reference)
    return found


def worth(positions: Array) -> Found:
    """Size, least effective draws and largest R-hat of draws, by chain and draw."""
    columns = [np.ascontiguousarray(positions[..., i]) for i in range(positions.shape[-1])]
    return {
        "size": len(columns),
        "bulk": min(float(arviz.ess(column, method="bulk")) for column in columns),
        "tail": min(float(arviz.ess(column, method="tail")) for column in columns),
        "rhat": max(float(arviz.rhat(column)) for column in columns),
    }


def distance(draws: Mapping[str, Array], reference: Mapping[str, Any]) -> tuple[float, str]:
    """Most standard errors of a mean, a mean square or a quantile from the reference, and whose."""
    found = [(0.0, "")]
    for name, values in draws.items():
        known = reference[name]
        compared = [
            ("mean", values, known["mean"], known["sd"]),
            ("mean square", values**2, known["mean_sq"], known["sd_sq"]),
        ]
        for level in (0.05, 0.5, 0.95):
            below = (values <= known[f"q{round(100 * level):02}"]).astype(float)
            compared.append((f"quantile {level}", below, level, math.sqrt(level * (1 - level))))
        for what, numbers, expected, spread in compared:
            own = numbers.std() / math.sqrt(arviz.ess(numbers, method="mean"))
            errors = abs(numbers.mean() - expected) / math.hypot(own, spread / 100.0)
            found.append((float(errors), f"{what} of {name}"))
    return max(found)


# The page -----------------------------------------------------------------------------------------

COSTS: dict[str, Callable[[Found], float]] = {
    "gradients, bulk": lambda run: run["sampling"] / run["bulk"],
    "gradients, bulk, warm-up counted": lambda run: (run["warmup"] + run["sampling"]) / run["bulk"],
    "gradients, tail": lambda run: run["sampling"] / run["tail"],
    "gradients, tail, warm-up counted": lambda run: (run["warmup"] + run["sampling"]) / run["tail"],
    "CPU s, bulk": lambda run: sampling_seconds(run) / run["bulk"],
    "CPU s, bulk, warm-up counted": lambda run: run["again"] / run["bulk"],
    "CPU s, tail, warm-up counted": lambda run: run["again"] / run["tail"],
    "CPU s, bulk, a first process": lambda run: run["first"] / run["bulk"],
    "CPU s, bulk, a second process": lambda run: run["second"] / run["bulk"],
}
"""Costs of an effective draw, by their names on the page."""
BY_POSTERIOR = (
    "gradients, bulk, warm-up counted",
    "CPU s, bulk, warm-up counted",
    "CPU s, bulk, a first process",
)


def sampling_seconds(run: Found) -> float:
    """CPU seconds of a call in a process that has compiled, but for the warm-up's gradients."""
    seconds: float = run["again"] * run["sampling"] / (run["warmup"] + run["sampling"])
    return seconds


def has_converged(run: Found) -> bool:
    """Tell whether effective draws of a run mean something."""
    return "error" not in run and run["rhat"] <= MOST_RHAT


def ratios(runs: Mapping[str, Mapping[str, Found]], cost: str, ours: str, peer: str) -> list[float]:
    """A peer's cost over ours, of posteriors where both have converged."""
    both = [(run[ours], run[peer]) for run in runs.values() if {ours, peer} <= run.keys()]
    of = COSTS[cost]
    return [of(b) / of(a) for a, b in both if has_converged(a) and has_converged(b)]


def medians(runs: Mapping[str, Mapping[str, Found]]) -> Iterator[list[str]]:
    """Rows of medians over all posteriors."""
    for cost in COSTS:
        row = [cost]
        for ours, peer in PAIRS:
            if peer.startswith("nutpie") and cost.startswith("CPU"):
                row.append("")  # it calls the density through Python here
                continue
            found = ratios(runs, cost, ours, peer)
            if not found:
                row.append("")
                continue
            lost = sum(ratio < 1.0 for ratio in found)
            row.append(f"{short(statistics.median(found))} ({lost} of {len(found)} lost)")
        yield row


def posterior_row(name: str, run: Mapping[str, Found]) -> list[str]:
    """Row of a posterior: costs of ours and of the peers over them, and what draws are worth."""
    ours = run[OURS]
    if "error" in ours:
        return [name, "", "", "", "", "", "", ours["error"]]
    row = [name, str(ours["size"])]
    for cost in BY_POSTERIOR[:1]:
        row.append(short(COSTS[cost](ours)) if has_converged(ours) else "")
    for peer in SIDES[2:5]:
        against = DIAGONAL if peer == "nutpie, diagonal" else OURS
        found = ratios({name: run}, BY_POSTERIOR[0], against, peer)
        row.append(short(found[0]) if found else "")
    found = ratios({name: run}, BY_POSTERIOR[1], OURS, NUMPYRO)
    row.append(short(found[0]) if found else "")
    return [*row, remark(run)]


def remark(run: Mapping[str, Found]) -> str:
    """Say whether our draws agree with the reference, and who has not converged."""
    ours, parts = run[OURS], []
    if "errors" in ours:
        if ours["errors"] <= MOST_ERRORS:
            parts.append("agrees")
        else:
            parts.append(f"**{short(ours['errors'])} standard errors off at {ours['worst']}**")
            said = [text.partition(":")[0] for text in ours["warnings"]]
            parts.append(f"the run says: {'; '.join(said)[:200]}" if said else "the run is silent")
    if ours["diverging"]:
        parts.append(f"{ours['diverging']} divergent")
    parts += [
        f"{side} {found.get('error') or 'R-hat ' + format(found['rhat'], '.3f')}"
        for side, found in run.items()
        if not has_converged(found)
    ]
    return "; ".join(parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    marks = ["---", *["--:"] * (len(head) - 2), "---"]
    return [f"| {' | '.join(row)} |" for row in (head, marks, *rows)] + [""]


def _lacking(runs: Mapping[str, Mapping[str, Found]]) -> str:
    """Say what has not been measured, where the run was stopped."""
    lacking = [name for name in POSTERIORS if name not in runs]
    peers = [f"{s} on {sum(s in run for run in runs.values())}" for s in SIDES[1:]]
    words = f" Not measured: {', '.join(lacking)}." if lacking else ""
    return f"{words} Of the {len(runs)} posteriors were measured: {'; '.join(peers)}."


def page(text: str, results: Found) -> str:
    """The page with these results in place of those that it has."""
    runs = {name: run for name, run in results["runs"].items() if OURS in run}
    against = [f"{peer} over {ours.replace('pyro_ext', 'ours')}" for ours, peer in PAIRS]
    known = [run[OURS] for run in runs.values() if "errors" in run[OURS]]
    agree = sum(run["errors"] <= MOST_ERRORS for run in known)
    where = f"{results['machine']['processor']}, {results['machine']['system']}, {results['date']}"
    head = (
        "posterior",
        "size",
        "gradients",
        "NumPyro",
        "nutpie, low rank",
        "nutpie, diagonal",
        "CPU s, NumPyro",
        "our draws",
    )
    lines = [
        f"{where}. {', '.join(f'{k} {v}' for k, v in results['versions'].items())}.",
        "",
        f"{agree} of {len(known)} posteriors agree with their references.{_lacking(runs)}",
        "",
        *table(("an effective draw costs", *against), list(medians(runs))),
        *table(head, [posterior_row(name, run) for name, run in runs.items()]),
    ]
    return with_lines(text, lines)


def main() -> None:
    """Measure what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="posteriors; default: all")
    parser.add_argument("--sides", nargs="*", default=SIDES, choices=SIDES, metavar="SIDE")
    parser.add_argument("--again", action="store_true", help="measure anew what has been measured")
    parser.add_argument("--timeout", type=float, default=1800.0, help="s for each process")
    parser.add_argument("--smoke", action="store_true", help="only ours, on one posterior")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--out", type=Path, help="default: where the page reads it")
    options = parser.parse_args()
    if options.smoke:
        options.names, options.sides = ["kidiq-kidscore_momiq"], [OURS]
    is_page = not options.smoke and options.out is None
    out = options.out or (KEPT if is_page else KEPT.parents[1] / "build" / KEPT.name)
    if unknown := sorted(set(options.names) - set(POSTERIORS)):
        parser.error(f"no posterior is named {', '.join(unknown)}")
    results: Found = {"runs": {}}
    if out.exists():
        results = json.loads(out.read_text())
        if results["machine"] != machine():
            parser.error(f"{out} is of another machine: delete it, or give another --out")
    results |= {"date": f"{date.today()}", "machine": machine()}
    results["versions"] = {k: version(k) for k, part in PACKAGES.items() if find_spec(part)}
    runs = results["runs"]

    def save() -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n")

    def measure(work: tuple[str, str]) -> None:
        name, side = work
        runs.setdefault(name, {})[side] = measured(name, side, options.timeout)
        print(f"{name}, {side}: {runs[name][side]}", file=sys.stderr, flush=True)
        save()

    chosen = options.names or list(POSTERIORS)
    todo = [
        (name, side)
        for name in chosen
        for side in options.sides
        if options.again or side not in runs.get(name, {})
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(measure, todo))
    # In the order of the posteriors, whichever were measured first.
    results["runs"] = {name: runs[name] for name in POSTERIORS if name in runs}
    save()
    if is_page:
        PAGE.write_text(page(PAGE.read_text(), results))


if __name__ == "__main__":
    main()
