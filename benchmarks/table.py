"""Runs the benchmarks beside peers one after the other, and makes one table of them all.

It is printed, kept as JSON, drawn, and put into ``docs/speed.md`` and the README. Each case is kept
as it is measured, so that a run which was stopped goes on with ``--resume``; a benchmark that fails
and a peer that is missing have a row that says why. Benchmarks that have no peer are run by name.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from _page import PAGE, Results, print_table, write_page

from pyro_ext.cli.doctor import diagnose

FOLDER = Path(__file__).parent

# The benchmarks of the table, in its order; those that run on another device come first.
ON_DEVICES = ("step_time", "nuts", "set_attention")
IN_TABLE = (
    *ON_DEVICES,
    "cold_start",
    "time_to_quality",
    "posterior_bootstrap",
    "nrm_mixtures",
    "nrm_mixture_search",
    "rbhc",
    "partitions",
    "tilted_stable",
    "copula",
    "neural_processes",
    "concept_erasure",
)


def scripts() -> dict[str, Path]:
    """The benchmarks by name: every script of this folder but this one and shared modules."""
    return {
        path.stem: path
        for path in sorted(FOLDER.glob("*.py"))
        if not path.stem.startswith("_") and path != Path(__file__)
    }


def machine() -> dict[str, str]:
    """The computer, as the page names it."""
    processor = diagnose(compile=False).devices[0].name
    return {
        "processor": f"{processor}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}",
    }


def run(
    command: Sequence[str], timeout: float, benchmark: dict[str, Any], save: Callable[[], None]
) -> None:
    """Run one benchmark; keep each of its cases as it comes, and why it ended early.

    :param Sequence command: its command line.
    :param float timeout: seconds by the clock after which it is ended.
    :param dict benchmark: takes ``cases``, ``seconds`` by the clock and, of one that fails,
        ``error``.
    :param Callable save: is called after each case.
    """
    benchmark |= {"cases": [], "error": "it was stopped"}
    started = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True) as process,
    ):
        alarm = threading.Timer(timeout, process.kill)
        alarm.start()
        assert process.stdout is not None
        for line in process.stdout:
            benchmark["cases"].append(json.loads(line))
            save()
        process.wait()
        benchmark["seconds"] = round(time.perf_counter() - started)
        said.seek(0)
        lines = said.read().strip().splitlines() or [f"ended with status {process.returncode}"]
    if process.returncode == 0:
        del benchmark["error"]
    elif not alarm.is_alive():
        benchmark["error"] = f"it took longer than {timeout:g} s"
    else:
        benchmark["error"] = lines[-1]
        print("\n".join(lines), file=sys.stderr)
    alarm.cancel()
    save()


def main() -> None:
    """Run the benchmarks that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = ", ".join(scripts())
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: the table; of: {names}")
    parser.add_argument("--out", type=Path, help="default: where the page reads the whole table")
    parser.add_argument("--smoke", action="store_true", help="run once over tiny sizes")
    parser.add_argument("--resume", action="store_true", help="keep what --out has measured")
    parser.add_argument("--timeout", type=float, default=7200.0, help="s for each benchmark")
    parser.add_argument("--device", default="cpu", help="such as cuda (default: %(default)s)")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(scripts())):
        parser.error(f"no benchmark is named {', '.join(unknown)}; there are {names}")
    on_device = options.device != "cpu"
    whole = ON_DEVICES if on_device else IN_TABLE
    is_whole = not (options.names or options.smoke)
    out = options.out or (
        PAGE.with_name(f"speed-{options.device}.json" if on_device else "speed.json")
        if is_whole
        else FOLDER.parent / "build" / "benchmarks.json"
    )
    results: Results = {"benchmarks": {}}
    if options.resume and out.exists():
        results = json.loads(out.read_text())
    run_as = {"smoke": options.smoke, "machine": machine()}
    if any(results.get(key, value) != value for key, value in run_as.items()):
        parser.error(f"--resume needs the sizes and the machine that {out} is of")
    results |= {"date": f"{date.today()}", **run_as}

    def save() -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n")

    not_run = {name: {"error": "it was not run"} for name in options.names or whole}
    results["benchmarks"] = not_run | results["benchmarks"]
    for name in not_run:
        found = results["benchmarks"][name]
        if "error" in found:
            print(f"{name} ...", file=sys.stderr)
            command = [sys.executable, str(scripts()[name])]
            command += ["--smoke"] * options.smoke
            command += ["--device", options.device] * on_device
            run(command, options.timeout, found, save)
    print_table(results)
    if is_whole and options.out is None:
        write_page()
    if failed := [name for name, found in results["benchmarks"].items() if "error" in found]:
        sys.exit(f"failed: {', '.join(failed)}; see above, and go on with --resume")


if __name__ == "__main__":
    main()
