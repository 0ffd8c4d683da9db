"""Pages are read without running them, and each runs in a process of its own."""

import json

import pytest

from pyro_ext.reproduction import FILE_NAME, Claim, Report
from pyro_ext.reproduction.pages import Script, choose, find_pages, last_result, run_page

HOLDS, FAILS = 1.0, 2.0  # values that make the claim below hold or fail
SCRIPT = '''"""Counting to {value}.

More words.
"""
import os
from pyro_ext.reproduction import Claim, Report, seeds

claims = [
    Claim("The count is at most "
          "one.", values=dict.fromkeys(seeds(), {value}), comparison="<=", bound=1, source="here"),
    Claim(comparison="<=", values=dict.fromkeys(seeds(), 0), bound=1, source="here",
          statement="Zero is less."),
]
print("counting")
report = Report("counting", claims, smoke="PYRO_EXT_SMOKE" in os.environ)
report.save(os.environ["PYRO_EXT_FIGURES"])
report.exit()
'''


WITH_PAGE = '''"""Counting, with what all pages have in common."""
from pyro_ext.reproduction import Page

page = Page("counting", paper="A. Author (2020), Counting")
for _ in range(1):
    page.claim("In a loop.", 0, "<=", 1, source="here")
page.claim("The count is at most " "one.", {value}, "<=", 1, source="here", across="mean")
page.claim(
    statement="Each seed is itself.",
    values=dict(zip(page.seeds, page.seeds)),
    comparison=">=",
    bound=page.seeds[0],
    source="here",
)
print("counting")
page.finish({{"steps": page.length(1000, smoke=10)}})
'''


def page(path) -> Script:
    return Script(path, "A title", ())


def script(folder, name, text):
    path = folder / f"{name}.py"
    path.write_text(text)
    return page(path)


@pytest.fixture(autouse=True)
def full_run(monkeypatch):
    monkeypatch.delenv("PYRO_EXT_SMOKE", raising=False)


def test_pages_are_found_and_not_run(tmp_path):
    script(tmp_path, "b_page", SCRIPT.format(value=1) + "\nraise SystemExit('it ran')")
    script(tmp_path, "a_page", "raise SystemExit('it ran')")
    script(tmp_path, "__init__", "")
    script(tmp_path, "_helper", "")
    script(tmp_path, "c_page", WITH_PAGE.format(value=1) + "\nraise SystemExit('it ran')")
    bare, full, modern = find_pages(tmp_path)
    assert (bare.slug, bare.title, bare.statements) == ("a-page", "a_page", ())
    assert (full.slug, full.title) == ("b-page", "Counting to 1.")
    assert full.statements == ("The count is at most one.", "Zero is less.")
    assert modern.statements == ("In a loop.", "The count is at most one.", "Each seed is itself.")


def test_choose(tmp_path):
    pages = [page(tmp_path / f"{name}.py") for name in ("px_sgmcmc", "bfry_graph", "px_other")]
    assert choose(pages, ["px-other", "PX_sgmcmc", "px-other"]) == [pages[2], pages[0]]


@pytest.mark.parametrize(
    ("value", "passed", "verdict"),
    [(HOLDS, True, "2 of 2 claims hold"), (FAILS, False, "1 of 2 claims hold")],
)
def test_run(tmp_path, capfd, value, passed, verdict):
    counting = script(tmp_path, "counting", SCRIPT.format(value=value))
    outcome = run_page(counting, tmp_path / "out", range(5, 9))
    assert capfd.readouterr().out == "counting: A title\ncounting\n"
    assert (outcome.passed, outcome.verdict) == (passed, verdict)
    assert outcome.report is not None and list(outcome.report.claims[0].values) == [5, 6, 7, 8]
    assert outcome.seconds > 0
    assert (tmp_path / "out" / "counting" / FILE_NAME).exists()
    assert last_result(counting, tmp_path / "out").startswith(verdict)


@pytest.mark.slow
def test_run_of_a_page_object(tmp_path, monkeypatch):
    counting = script(tmp_path, "counting", WITH_PAGE.format(value=FAILS))
    outcome = run_page(counting, tmp_path, range(5, 9))
    assert outcome.returncode == 1 and outcome.verdict == "2 of 3 claims hold"
    report = outcome.report
    assert report.paper == "A. Author (2020), Counting" and report.seconds > 0
    assert report.settings == {"seeds": [5, 6, 7, 8], "steps": 1000}
    assert [claim.values for claim in report.claims] == [
        dict.fromkeys(range(5, 9), 0.0),
        dict.fromkeys(range(5, 9), FAILS),
        {seed: float(seed) for seed in range(5, 9)},
    ]
    assert [claim.across for claim in report.claims] == [
        "one number",
        "one number",
        "every seed",
    ]
    monkeypatch.setenv("PYRO_EXT_SMOKE", "1")
    outcome = run_page(counting, tmp_path, range(3))
    assert outcome.passed and outcome.report.smoke and outcome.report.settings["steps"] == 10


def test_short_run_passes_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PYRO_EXT_SMOKE", "1")
    outcome = run_page(script(tmp_path, "counting", SCRIPT.format(value=FAILS)), tmp_path, range(3))
    assert outcome.passed and outcome.verdict == "short run, decides nothing"


@pytest.mark.parametrize(
    ("ending", "verdict"),
    [
        ("raise SystemExit(3)", "stopped with status 3"),
        ("1 / 0", "stopped with status 1"),
        ("", "left no report"),
    ],
)
def test_page_that_ends_early(tmp_path, ending, verdict):
    """A report that holds from an earlier run does not make it pass."""
    early = script(tmp_path, "early", ending)
    claim = Claim("A thing.", {0: 1, 1: 1, 2: 1}, "<=", 1, "here")
    Report("early", [claim]).save(tmp_path / "early")
    outcome = run_page(early, tmp_path, range(3))
    assert not outcome.passed and outcome.verdict == verdict
    assert last_result(early, tmp_path) == "not run"


def test_page_that_stops_after_its_report(tmp_path):
    text = SCRIPT.format(value=HOLDS) + "\n1 / 0\n"
    outcome = run_page(script(tmp_path, "late", text), tmp_path, range(3))
    assert not outcome.passed and outcome.verdict == "stopped with status 1"


def test_page_that_hides_its_failure(tmp_path):
    text = SCRIPT.format(value=FAILS).replace("report.exit()", "")
    outcome = run_page(script(tmp_path, "quiet", text), tmp_path, range(3))
    assert not outcome.passed and outcome.verdict == "1 of 2 claims hold"


def test_last_result_of_a_broken_file(tmp_path):
    broken = page(tmp_path / "broken.py")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / FILE_NAME).write_text(json.dumps({"schema": 99}))
    assert "its schema is 99" in last_result(broken, tmp_path)
