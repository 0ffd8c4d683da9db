"""The scoreboard says of each claim what was measured, in all three forms."""

import json
from pathlib import Path

import pytest

from pyro_ext.reproduction import Claim, Report
from pyro_ext.reproduction.pages import Outcome, Script
from pyro_ext.reproduction.scoreboard import scoreboard, to_html, to_markdown, write_scoreboard

NAN = float("nan")


@pytest.fixture
def outcomes(tmp_path):
    good = Claim("One <is> one | or less.", {0: 1, 1: 0.5, 2: 1}, "<=", 1.0, "table 1")
    bad = Claim(
        "It is > 2.",
        {0: 3, 1: NAN, 2: 3},
        ">",
        2.0,
        "figure 2",
        reason="it is not & was",
        central=True,
    )
    claims = {"counts": [good, bad], "short": [bad]}
    found = []
    for slug in ("counts", "short", "crashes"):
        report = None
        if slug in claims:
            report = Report(
                slug,
                claims[slug],
                paper=f"A. Author (2020), {slug}",
                figures={"a-figure": Path("elsewhere/a-figure.png")},
                smoke=slug == "short",
                versions={"torch": "2.13" if slug == "short" else "2.14"},
                reconstruction="its algorithm was not at hand." if slug == "counts" else "",
            )
        script = Script(tmp_path / f"{slug}.py", "T", ())
        machine = "" if slug == "short" else "Linux x86_64, 2 CPUs"
        found.append(Outcome(script, 1, 2.0, report, 61.4, machine))
    return found


def test_content(outcomes):
    content = scoreboard(outcomes)
    assert (content["num_pages"], content["num_claims"], content["num_claims_that_hold"]) == (
        3,
        2,
        1,
    )
    counts, short, crashes = content["pages"]
    assert counts["claims"][1]["values"] == {"0": "3.0", "1": "nan", "2": "3.0"}
    assert [claim["holds"] for claim in counts["claims"]] == [True, False]
    assert counts["central"] == counts["claims"][1] and crashes["central"] is None
    assert (content["num_central"], content["num_central_that_hold"]) == (1, 0)
    assert short["smoke"] and crashes["claims"] == [] and not crashes["passed"]
    assert crashes["verdict"] == "stopped with status 1"
    assert content["machine"] == counts["machine"] == "Linux x86_64, 2 CPUs"
    assert content["versions"] == {"torch": "2.13 and 2.14"}
    json.dumps(content, allow_nan=False)


def test_markdown(outcomes):
    text = to_markdown(scoreboard(outcomes))
    assert "0 of 1 central claims hold, and 1 of 2 claims of 3 pages in all" in text
    assert "; Linux x86_64, 2 CPUs; torch 2.13 and 2.14." in text
    central = "It is > 2. | every seed > 2 | 3, nan, 3"
    assert f"| [counts](#counts) | {central} | **fails** | 1 of 2 claims hold | 61 |" in text
    assert f"| [short](#short) | {central} | short run | stopped with status 1" in text
    assert "| [crashes](#crashes) |  |  |  |  | stopped with status 1 | 61 |" in text
    words = "One &lt;is> one \\| or less. (table 1)"
    assert f"| {words} | every seed &lt;= 1 | 1, 0.5, 1 | holds |" in text
    assert "**fails**: it is not &amp; was |" in text and "short run" in text
    assert "Stopped with status 1." in text


def test_html(outcomes):
    text = to_html(scoreboard(outcomes))
    assert "One &lt;is&gt; one | or less." in text and "it is not &amp; was" in text
    assert "A reconstruction: its algorithm" in text
    assert "<b>Central:</b> It is &gt; 2." in text
    assert (
        '<img src="counts/a-figure.png" loading="lazy" alt="a figure, a figure of counts">' in text
    )


def test_files(outcomes, tmp_path):
    path = write_scoreboard(outcomes, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "scoreboard.html",
        "scoreboard.json",
        "scoreboard.md",
    ]
    assert path.read_text().startswith("<!doctype html>")
    assert json.loads((tmp_path / "scoreboard.json").read_text())["num_pages"] == 3
