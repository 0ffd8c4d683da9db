"""Run pages in full and keep what they leave in `reports/`, where their tests read it.

``python -m tests.pages`` runs all, two at a time on two cores; ``--part 2/5`` a part of them. Pages
that ran to their end with the package as it is are left out, so that a run that was stopped goes
on; ``--again`` runs them too. The scoreboard there is of all pages of papers that have been run.

``python -m tests.pages --save`` runs nothing: it copies finished runs to `docs/runs`, where the
site finds them, and says which of those are older than their scripts.
"""

import argparse
import math
import os
import re
import shutil
from collections.abc import Iterable
from functools import cache
from io import BytesIO
from pathlib import Path
from tempfile import gettempdir

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pyro_ext.reproduction import FILE_NAME, MIN_SEEDS, Report
from pyro_ext.reproduction.pages import (
    PRINTED_NAME,
    RUN_NAME,
    Script,
    choose,
    find_pages,
    kept_outcome,
    last_outcome,
    run_pages,
)
from pyro_ext.reproduction.scoreboard import write_scoreboard
from tests import caches, durations

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "tutorials"
PAPERS = TUTORIALS / "papers"
REPORTS = ROOT / "reports"
SAVED = ROOT / "docs" / "runs"
PICTURE_WIDTH = 1400
PICTURE_BYTES, PAGE_BYTES = 60_000, 200_000
# CPU seconds of slow tests and pages that CI has time for, also on a machine three times slower.
PART = 400.0
LONGEST = 600.0
"""CPU seconds above which a page is only run where it is named, or without a part."""


@cache
def pages() -> tuple[Script, ...]:
    """Workflows and papers; what the demonstration shows has tests of its own."""
    found = [*find_pages(TUTORIALS), *find_pages(PAPERS)]
    return tuple(page for page in found if page.path.stem != "demo")


def page_named(slug: str) -> Script:
    """The page of that name."""
    (page,) = choose(pages(), [slug])
    return page


def check_short_report(folder: Path, slug: str) -> None:
    """A short run saves figures and, of a page that reports, all claims, and says it was short."""
    saved = {path.stem: path for path in folder.glob("*.png")}
    assert saved and all(path.stat().st_size > 3_000 for path in saved.values())
    assert "nan" not in (folder / "printed.txt").read_text("utf-8").lower().split()
    if statements := page_named(slug).statements:
        report = Report.load(folder)
        assert report.smoke and report.slug == slug
        assert [claim.statement for claim in report.claims] == list(statements)
        assert set(report.figures or saved) == set(saved)


def expected_seconds(longest: float = LONGEST) -> dict[Script, float]:
    """CPU seconds of the pages that take at most so many, by default of those that are in parts."""
    record = durations.load()["pages"]
    seconds = {page: record.get(page.slug, durations.UNKNOWN_PAGE) for page in pages()}
    return {page: each for page, each in seconds.items() if each <= longest}


def part_of_commit(number: int) -> str:
    """K/N, such that N parts of slow tests and pages fit in CI, and commits take turns."""
    total = sum(durations.load()["tests"].values()) + sum(expected_seconds().values())
    num_parts = math.ceil(total / PART)
    return f"{number % num_parts + 1}/{num_parts}"


def save_runs(chosen: Iterable[Script], all_must_do: bool) -> None:
    """Copy finished runs in full for the site, and say what it shows then.

    With ``all_must_do`` it is an error where a page has no such run.
    """
    refused = []
    for page in chosen:
        outcome = kept_outcome(page, REPORTS)
        if outcome is None:
            reason = "has no run"
        elif outcome.smoke:
            reason = "ran shortly"
        elif not outcome.is_whole:
            reason = outcome.verdict
        else:
            copy_run(REPORTS / page.slug, SAVED / page.slug)
            reason = ""
        if reason:
            refused.append(page.slug)
        shown = kept_outcome(page, SAVED)
        state = "no saved run" if shown is None else f"saved: {shown.verdict}"
        if shown and not shown.is_current:
            state += ", OLDER than its script"
        print(f"{page.slug}: {state}" + (f"; the one in reports: {reason}" if reason else ""))
    if refused and all_must_do:
        raise SystemExit(f"not saved: {', '.join(refused)}")


def copy_run(source: Path, target: Path) -> None:
    """Copy what a run left, with small pictures and without paths of this machine."""
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name in (RUN_NAME, FILE_NAME, PRINTED_NAME):
        if (source / name).exists():
            text = (source / name).read_text("utf-8")
            text = re.sub(r"[^\n]*\r(?!\n)", "", text)  # progress that was overwritten
            text = re.sub(r"[^\s\"'(]*/site-packages/", "", text).replace(f"{ROOT}/", "")
            text = re.sub(rf"{gettempdir()}/[^\s\"'/]+/", "", text)
            (unfinished / name).write_text(text, "utf-8")
    pictures = sorted(source.glob("*.png"))
    for path in pictures:
        size = min(PICTURE_BYTES, PAGE_BYTES // len(pictures))
        (unfinished / path.name).write_bytes(small_picture(path, size))
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)


def small_picture(path: Path, size: int) -> bytes:
    """A picture with as many colors and dots as fit into so many bytes, and its description."""
    with Image.open(path) as opened:
        about = PngInfo()
        about.add_text("Description", opened.info.get("Description", ""))
        image = opened.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image.thumbnail((PICTURE_WIDTH, 2 * PICTURE_WIDTH), Image.Resampling.LANCZOS)
    while True:
        for num_colors in (256, 128, 64, 32, 16):
            written = BytesIO()
            image.quantize(num_colors, dither=Image.Dither.NONE).save(
                written, "png", optimize=True, pnginfo=about
            )
            if written.tell() <= size:
                return written.getvalue()
        image.thumbnail((0.85 * image.width, image.height), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.pages", description=__doc__)
    parser.add_argument("slugs", nargs="*", help="pages to run (default: all)")
    parser.add_argument("--part", type=durations.part, default=(1, 1), metavar="K/N")
    parser.add_argument("--again", action="store_true", help="also what has run")
    parser.add_argument("--record-durations", action="store_true", help="into durations.json")
    parser.add_argument(
        "--part-of-commit", type=int, metavar="NUMBER", help="only print K/N for the NUMBER-th"
    )
    parser.add_argument("--save", action="store_true", help="copy finished runs to docs/runs")
    options = parser.parse_args()
    if options.part_of_commit is not None:
        print(part_of_commit(options.part_of_commit))
        return
    number, num_parts = options.part
    seconds = expected_seconds(math.inf if num_parts == 1 else LONGEST)
    chosen = durations.divide(seconds, num_parts)[number - 1]
    if options.slugs:
        chosen = choose(pages(), options.slugs)
    if options.save:
        save_runs(chosen if options.slugs else pages(), bool(options.slugs))
        return
    # A page gets one thread, since as many run at once as there are cores.
    libraries = ("MKL", "OMP", "OPENBLAS")
    os.environ |= {f"{library}_NUM_THREADS": "1" for library in libraries} | caches.ENVIRONMENT
    os.environ.pop("PYRO_EXT_SMOKE", None)
    seeds = range(MIN_SEEDS)
    if not options.again:
        chosen = [page for page in chosen if not last_outcome(page, REPORTS, seeds)]
    taken = {}
    for outcome in run_pages(chosen, REPORTS, seeds, os.cpu_count() or 1):
        slug, cpu_seconds = outcome.page.slug, outcome.cpu_seconds or outcome.seconds
        taken[slug] = cpu_seconds
        verdict = outcome.verdict if outcome.report or outcome.returncode else "ran to its end"
        print(f"{slug}: {verdict}, {cpu_seconds:.0f} CPU s, {outcome.seconds:.0f} s", flush=True)
    papers = [page for page in pages() if page.path.parent == PAPERS]
    kept = [outcome for page in papers if (outcome := last_outcome(page, REPORTS))]
    write_scoreboard(kept, REPORTS)
    if options.record_durations:
        durations.save("pages", taken)


if __name__ == "__main__":
    main()
