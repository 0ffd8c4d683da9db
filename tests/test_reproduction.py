"""Claims compare as they say, and reports come back from their files as they were."""

import io
import json
import math
from dataclasses import replace
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from pyro_ext.reproduction import FILE_NAME, SEEDS_VARIABLE, Claim, Page, Report, seeds


def claim(**changes) -> Claim:
    arguments = {
        "statement": "The chain finds most modes.",
        "values": {0: 21.0, 1: 15.0, 4: 24.0},
        "comparison": ">=",
        "bound": 15.0,
        "source": "a paper, table 1",
    }
    return Claim(**arguments | changes)


class Drawing:
    """A figure that is a few letters."""

    def savefig(self, fname, /, *, dpi):
        fname.write_text(f"drawn at {dpi}")


def printed(report: Report) -> str:
    text = io.StringIO()
    report.print(Console(width=120, file=text))
    return text.getvalue()


def test_every_seed_counts(subtests):
    for comparison, values, measured, holds in [
        (">=", (3.0, 2.0, 4.0), 2.0, True),
        (">", (3.0, 2.0, 4.0), 2.0, False),
        (">", (3.0, 2.5, 4.0), 2.5, True),
        ("<=", (1.0, 2.0, 0.0), 2.0, True),
        ("<", (1.0, 2.0, 0.0), 2.0, False),
        ("<", (1.0, 1.5, 0.0), 1.5, True),
        (">=", (3.0, 1.0, 4.0), 1.0, False),
        ("<=", (-math.inf, 1.0, 1.0), 1.0, True),
        (">=", (math.inf, 3.0, 3.0), 3.0, True),
        ("<=", (math.inf, 1.0, 1.0), math.inf, False),
    ]:
        with subtests.test(comparison=comparison, values=values, measured=measured, holds=holds):
            made = claim(values=dict(enumerate(values)), comparison=comparison, bound=2.0)
            assert (made.measured, made.holds) == (measured, holds)


def test_one_number_is_not_shown_as_that_of_every_seed():
    page = Page("counting")
    made = page.claim("Three is less than four.", 3, "<", 4, source="arithmetic")
    assert made.across == "one number" and made.holds and len(made.values) == 3
    text = printed(Report("counting", [made, claim()]))
    assert "one number" in text and "0: 3" not in text and "0: 21" in text
    with pytest.raises(ValueError, match="values must be one number for all seeds"):
        claim(across="one number")


@pytest.mark.parametrize(("comparison", "holds"), [("<", True), (">", False)])
def test_mean_counts(comparison, holds):
    made = claim(values={0: -1.0, 1: 0.25, 2: -0.75}, comparison=comparison, bound=0, across="mean")
    assert (made.measured, made.holds) == (-0.5, holds)


def test_nan_never_holds(subtests):
    for seed in range(3):
        for comparison in ["<", "<=", ">", ">="]:
            for across in ["every seed", "mean"]:
                with subtests.test(across=across, comparison=comparison, seed=seed):
                    for other in (-5.0, 5.0):
                        values = dict.fromkeys(range(3), other) | {seed: math.nan}
                        made = claim(values=values, comparison=comparison, bound=0.0, across=across)
                        assert math.isnan(made.measured) and not made.holds


def test_mean_of_opposite_infinities_never_holds():
    values = {0: math.inf, 1: -math.inf, 2: 0.0}
    assert not any(
        claim(values=values, comparison=comparison, bound=0.0, across="mean").holds
        for comparison in ("<", "<=", ">", ">=")
    )


def test_bad_claims(subtests):
    for argument, value in [
        ("statement", " "),
        ("values", {0: 1.0, 1: 2.0}),
        ("values", {0: 1.0, 1: 2.0, 2: "three"}),
        ("values", {0: 1.0, 1: 2.0, "two": 3.0}),
        ("bound", math.inf),
    ]:
        with subtests.test(argument=argument, value=value):
            with pytest.raises(ValueError, match=f"^{argument} must .*, got") as error:
                claim(**{argument: value})
            assert repr(value) in str(error.value)


def test_bad_reports(subtests):
    for argument, value in [
        ("slug", "Px_SGMCMC"),
        ("slug", "../elsewhere"),
        ("figures", {"a/b": Drawing()}),
        ("settings", {"step size": math.nan}),
        ("settings", reduce(lambda inner, _: {"deep": inner}, range(300), {})),
    ]:
        with subtests.test(argument=argument, value=value):
            with pytest.raises((ValueError, TypeError), match=f"^{argument} must .*, got"):
                Report(**{"slug": "a-page", "claims": [claim()]} | {argument: value})


def test_report_holds_where_all_claims_do():
    good, bad = claim(), claim(bound=16.0, reason="seed 1 starts far away")
    assert Report("a-page", [good, good]).holds
    report = Report("a-page", [good, bad])
    assert not report.holds and report.status == 1
    assert report.verdict == "1 of 2 claims hold"


def test_exit():
    Report("a-page", [claim()]).exit()
    failing = Report("a-page", [claim(bound=16.0, reason="known")])
    with pytest.raises(SystemExit) as end:
        failing.exit()
    assert end.value.code == 1
    replace(failing, smoke=True).exit()


def test_a_notebook_goes_on(monkeypatch):
    failing = Report("a-page", [claim(bound=16.0)])
    monkeypatch.setattr("builtins.get_ipython", lambda: None, raising=False)
    failing.exit()


def test_print():
    text = printed(
        Report(
            "a-page",
            [claim(), claim(statement="All [of them].", bound=25, reason="[too] short a run")],
            seconds=12.3,
        )
    )
    assert "a-page: 1 of 2 claims hold" in text
    assert "All [of them]." in text and "fails: [too] short a run" in text
    assert "holds" in text and "FAILS" in text and "15 >= 25" in text and "4: 24" in text
    assert "12 s" in text and "torch" in text and "a paper, table 1" in text


def test_reason_is_printed_only_for_a_failure():
    report = Report("a-page", [claim(reason="too short a run")])
    assert "too short a run" not in printed(report)


def test_short_run_is_no_verdict():
    text = printed(Report("a-page", [claim(bound=25, reason="too short")], smoke=True))
    assert "FAILS" not in text and "decides nothing" in text and "fails" not in text


def test_saved_report_comes_back(tmp_path):
    claims = [
        claim(),
        claim(values={0: math.nan, 1: -math.inf, 2: 1 / 3}, across="mean", reason="who knows"),
    ]
    report = Report(
        "a-page",
        claims,
        paper="A. Author (2020), Title",
        settings={"steps": 10, "rates": (0.1, 0.2), "nested": {"flag": None}},
        figures={"modes": Drawing()},
        seconds=1.5,
        smoke=True,
    )
    path = report.save(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / FILE_NAME
    assert sorted(file.name for file in path.parent.iterdir()) == ["modes.png", FILE_NAME]
    for given in (path, path.parent, str(path)):
        loaded = Report.load(given)
        assert loaded.figures == {"modes": path.parent / "modes.png"}
        # NaN differs from itself, its text does not.
        assert repr(replace(loaded, figures={})) == repr(replace(report, figures={}))


def test_loaded_report_saves_elsewhere(tmp_path):
    Report("a-page", [claim()], figures={"modes": Drawing()}).save(tmp_path / "one")
    loaded = Report.load(tmp_path / "one")
    loaded.save(tmp_path / "one")  # its figures are there already
    loaded.save(tmp_path / "two")
    for name in ("modes.png", FILE_NAME):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()


def test_file_is_strict_json_with_a_stable_schema(tmp_path):
    path = Report("a-page", [claim(values={0: math.nan, 1: 1.0, 2: 2.0})]).save(tmp_path)

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert list(content) == [
        "schema",
        "slug",
        "verdict",
        "paper",
        "claims",
        "settings",
        "figures",
        "reconstruction",
        "seconds",
        "smoke",
        "versions",
        "date",
    ]
    assert content["schema"] == 1
    assert content["claims"][0] == {
        "statement": "The chain finds most modes.",
        "values": [
            {"seed": 0, "value": "nan"},
            {"seed": 1, "value": 1.0},
            {"seed": 2, "value": 2.0},
        ],
        "comparison": ">=",
        "bound": 15.0,
        "source": "a paper, table 1",
        "across": "every seed",
        "reason": None,
        "central": False,
        "measured": "nan",
        "holds": False,
    }


def test_what_holds_is_not_believed_but_computed(tmp_path):
    path = Report("a-page", [claim(bound=16.0)]).save(tmp_path)
    path.write_text(path.read_text().replace('"holds": false', '"holds": true'))
    assert not Report.load(path).holds


def test_other_files_are_refused(subtests, tmp_path):
    path = Report("a-page", [claim()]).save(tmp_path)
    content = json.loads(path.read_text())
    for changed in (
        [],
        content | {"schema": 2},
        content | {"surprise": 1},
        content | {"claims": []},
        content | {"claims": [{"statement": "no more"}]},
        content | {"figures": None},
        {key: value for key, value in content.items() if key != "slug"},
        "no JSON",
    ):
        with subtests.test(str(changed)):
            path.write_text(changed if changed == "no JSON" else json.dumps(changed))
            with pytest.raises(ValueError, match=f"{FILE_NAME} is not a readable report: "):
                Report.load(tmp_path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        Report.load(tmp_path / FILE_NAME)


def test_figures_of_a_file_stay_in_its_folder(tmp_path):
    path = Report("a-page", [claim()], figures={"modes": Drawing()}).save(tmp_path)
    path.write_text(path.read_text().replace('"modes.png"', '"../../modes.png"'))
    assert Report.load(path).figures == {"modes": tmp_path / "modes.png"}


def test_failed_saving_keeps_the_older_report(tmp_path, monkeypatch):
    path = Report("a-page", [claim()]).save(tmp_path)
    before = path.read_text()

    def fail(*arguments):
        raise OSError("no space")

    monkeypatch.setattr("pyro_ext.reproduction.os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        Report("a-page", [claim(bound=1.0)]).save(tmp_path)
    assert path.read_text() == before


def test_seeds(monkeypatch):
    monkeypatch.delenv(SEEDS_VARIABLE, raising=False)
    assert seeds() == (0, 1, 2)
    monkeypatch.setenv(SEEDS_VARIABLE, "7 3 11 5")
    assert seeds() == (7, 3, 11, 5)


@pytest.mark.parametrize("text", ["", "0 1", "0 0 1", "0 1 two", "0 1 -2"])
def test_bad_seeds(monkeypatch, text):
    monkeypatch.setenv(SEEDS_VARIABLE, text)
    with pytest.raises(
        ValueError, match=f"{SEEDS_VARIABLE} must contain at least 3 .* got '{text}'"
    ):
        seeds()


def test_page_saves_figures_where_it_is_told_and_closes_them(tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setenv("PYRO_EXT_FIGURES", str(tmp_path / "new"))
    page = Page("a-page", num_threads=None)
    figure, (left, right) = plt.subplots(1, 2, figsize=(3, 2))
    assert page.figure("modes", figure, despine=True) is figure
    assert not plt.fignum_exists(figure.number)
    assert page.figures == {"modes": tmp_path / "new" / "modes.png"}
    assert plt.imread(page.figures["modes"]).shape == (240, 360, 4)
    sides = ("top", "right", "bottom", "left")
    for axes in (left, right):
        visible = [axes.spines[side].get_visible() for side in sides]
        assert visible == [False, False, True, True]
    wide = page.figure("wide", plt.figure(figsize=(3, 2)), dpi=150)
    assert plt.imread(page.figures["wide"]).shape == (300, 450, 4) and not wide.axes
    page.claim("Nothing.", 0, "<=", 0, source="here")
    # What a site has moved away is not looked for again.
    page.figures["modes"].unlink()
    page.finish()
    assert Report.load(page.folder).figures == page.figures


def test_page_of_defaults(tmp_path, monkeypatch):
    for variable in ("FIGURES", "SMOKE", "SEEDS"):
        monkeypatch.delenv(f"PYRO_EXT_{variable}", raising=False)
    monkeypatch.chdir(tmp_path)
    page = Page("a-page", num_threads=None)
    assert (page.seeds, page.smoke, page.length("all", smoke="few")) == ((0, 1, 2), False, "all")
    assert page.folder == Path("figures/a-page") and not page.folder.exists()
    with pytest.raises(ValueError, match="^slug must consist of lowercase letters .* got 'A_page'"):
        Page("A_page")


@pytest.mark.parametrize(("text", "smoke"), [("", False), ("0", False), ("1", True)])
def test_short_run_is_asked_for(monkeypatch, text, smoke):
    monkeypatch.setenv("PYRO_EXT_SMOKE", text)
    assert Page("a-page", num_threads=None).smoke is smoke


@pytest.mark.parametrize("number", [np.float32(3), np.int64(3), torch.tensor(3.0), np.array(3)])
def test_numbers_of_arrays_and_tensors(number):
    page = Page("a-page", num_threads=None)
    made = page.claim("Three is three.", number, "<=", number, source="arithmetic")
    assert made.holds and (made.measured, made.bound) == (3.0, 3.0)


def test_page_refuses_a_bad_name_of_a_figure_at_once(tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setenv("PYRO_EXT_FIGURES", str(tmp_path / "new"))
    figure = plt.figure()
    with pytest.raises(ValueError, match="^name must consist of lowercase letters .*'too_large'"):
        Page("a-page", num_threads=None).figure("too_large", figure)
    plt.close(figure)
    assert not (tmp_path / "new").exists()


def test_page_saves_its_report_before_it_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("PYRO_EXT_FIGURES", str(tmp_path))
    page = Page("a-page", num_threads=None)
    with pytest.raises(ValueError, match="^claims must be a list of claims, at least 1, got"):
        page.finish()
    page.claim("Nothing.", 0, "<=", 0, source="here")
    with pytest.raises(ValueError, match="^settings must be plain values .*'shift': 'nan'"):
        page.finish({"steps": 3, "shift": math.nan, (1, 2): None})
    settings = {"seeds": list(page.seeds), "steps": 3, "shift": "nan", "(1, 2)": "None"}
    assert Report.load(tmp_path).settings == settings


def test_page_takes_one_thread():
    before = torch.get_num_threads()
    try:
        Page("a-page")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_table_of_a_page(capsys):
    Page("a-page", num_threads=None).table(
        {"long name": {"steps": 12, "loss": 0.5}, "x": {"steps": 3456, "loss": 10.25}},
        number_format=".2f",
    )
    assert capsys.readouterr().out.splitlines() == [
        "             steps   loss",
        "long name       12   0.50",
        "x             3456  10.25",
    ]


def test_table_goes_by_the_names_of_columns(capsys):
    page = Page("a-page", num_threads=None)
    page.table({"x": {"a": 1.0, "b": 2.0}, "y": {"b": 4.0, "a": 3.0}}, number_format=".0f")
    assert capsys.readouterr().out.split() == ["a", "b", "x", "1", "2", "y", "3", "4"]
    with pytest.raises(
        ValueError, match=r"^rows must all have the columns \['a', 'b'\], got .* 'y'"
    ):
        page.table({"x": {"a": 1.0, "b": 2.0}, "y": {"a": 3.0}})
    with pytest.raises(ValueError, match="^rows must have at least one row, got"):
        page.table({})


def test_one_claim_is_central(tmp_path):
    claims = [claim(), claim(central=True)]
    saved = Report("a-page", claims).save(tmp_path)
    assert [one.central for one in Report.load(saved).claims] == [False, True]
    with pytest.raises(ValueError, match="claims must have at most one that is central"):
        Report("a-page", [claims[1], claims[1]])
