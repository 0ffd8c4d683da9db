"""Runs benchmarks one after the other, prints their results as tables, and keeps the JSON lines."""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parent / "build" / "benchmarks.jsonl"


def scripts() -> dict[str, Path]:
    """The benchmarks by name: every script of this folder but this one and shared modules."""
    return {
        path.stem: path
        for path in sorted(FOLDER.glob("*.py"))
        if not path.stem.startswith("_") and path != Path(__file__)
    }


def table(result: Mapping[str, Any]) -> Table:
    """One benchmark as a table: a row for each case and side."""
    drawn = Table(title=f"{result['benchmark']} [{result['unit']}]", title_justify="left")
    for column in ("case", "side"):
        drawn.add_column(column)
    for column in ("median", "ratio to ours", "first call s"):
        drawn.add_column(column, justify="right")
    drawn.add_column("quality")
    for row in result["results"]:
        name = row["case"]
        for side, median in row["median"].items():
            quality = row.get("quality", {}).get(side, {})
            drawn.add_row(
                name,
                side,
                f"{median:g}",
                _number(row.get("ratio", {}).get(side)),
                _number(row.get("first_call_s", {}).get(side)),
                ", ".join(f"{key} {value:.3g}" for key, value in quality.items()),
            )
            name = ""
        drawn.add_section()
    return drawn


def main() -> None:
    """Run the benchmarks that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(scripts())}")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--smoke", action="store_true", help="run once over tiny sizes")
    options = parser.parse_args()
    known = scripts()
    if unknown := sorted(set(options.names) - set(known)):
        parser.error(f"no benchmark is named {', '.join(unknown)}; there are {', '.join(known)}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    console = Console()
    failed = []
    with options.out.open("w", encoding="utf-8") as lines:
        for name in options.names or known:
            command = [sys.executable, str(known[name]), *(["--smoke"] if options.smoke else [])]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                failed.append(name)
                continue
            lines.write(done.stdout)
            lines.flush()
            console.print(table(json.loads(done.stdout)))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    main()
