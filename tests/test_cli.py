"""The command, the demonstration it runs, and the pages it knows."""

import json
import os
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from typer.testing import CliRunner

from pyro_ext import __version__
from pyro_ext._lib.optional import MissingModuleError
from pyro_ext.cli import commands, doctor
from pyro_ext.cli.commands import app
from pyro_ext.datasets import load_frequencies
from pyro_ext.diagnostics import to_arviz
from pyro_ext.random_measures import GeneralizedGammaProcess
from pyro_ext.reproduction import Report
from pyro_ext.reproduction.pages import find_pages
from pyro_ext.tutorials import demo

runner = CliRunner()
WIDE = {"COLUMNS": "300", "TERMINAL_WIDTH": "300"}


def test_help_and_version():
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0 and "demo" in result.output
    assert runner.invoke(app, ["--version"]).output.strip() == __version__
    assert "num-samples" in runner.invoke(app, ["demo", "--help"]).output


@pytest.mark.parametrize("command", [["demo"], ["reproduce", "--all"]])
def test_an_output_that_cannot_be_made(command, tmp_path, monkeypatch):
    """Known before work begins, which would take minutes."""
    (tmp_path / "file").write_text("")
    (tmp_path / "locked").mkdir()
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: "locked" not in str(path) and access(path, mode)
    )
    for name in ("file", "file/below", "locked"):
        result = runner.invoke(app, [*command, "--output", str(tmp_path / name)], env=WIDE)
        assert result.exit_code == 2, name
        assert "--output" in result.output and name in result.output


PAGE = """'A page that counts.'
import os
from pyro_ext.reproduction import Claim, Report, seeds

values = dict.fromkeys(seeds(), {value})
claim = Claim("The count is [one].", values, comparison="<=", bound=1, source="here")
report = Report("{slug}", [claim])
report.save(os.environ["PYRO_EXT_FIGURES"])
report.exit()
"""
CRASH = "'A page that stops.'\n1 / 0\n"


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """Pages of three fates instead of the real ones, which take minutes."""
    monkeypatch.delenv("PYRO_EXT_SMOKE", raising=False)
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "counts.py").write_text(PAGE.format(slug="counts", value=1))
    (folder / "counts_wrong.py").write_text(PAGE.format(slug="counts-wrong", value=2))
    (folder / "crashes.py").write_text(CRASH)
    monkeypatch.setattr(commands, "_pages", lambda: find_pages(folder))
    # Wide enough that no word is broken.
    monkeypatch.setenv("COLUMNS", "200")


def rows(output):
    """First cell of each row of a table, with the whole row."""
    lines = [line for line in output.splitlines() if line.startswith("│")]
    return {line.split("│")[1].strip(): line for line in lines}


def test_list_knows_the_real_pages(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = runner.invoke(app, ["list", "--output", "a-folder-that-is-not-there"])
    assert result.exit_code == 0
    assert "not run" in rows(result.output)["px-sgmcmc"]
    assert "With a cyclical step size one chain finds most of 25 modes." in result.output


def test_every_real_page_says_what_it_claims():
    for page in commands._pages():
        assert page.statements and page.title != page.path.stem, page.path


def test_reproduce_one(pages, tmp_path):
    output = str(tmp_path / "out")
    assert "not run" in rows(runner.invoke(app, ["list", "--output", output]).output)["counts"]
    options = ["--output", output, "--seed", "4", "--seeds", "5"]
    result = runner.invoke(app, ["reproduce", "counts", *options])
    assert result.exit_code == 0, result.output
    assert "1 of 1 claims hold" in rows(result.output)["counts"]
    report = Report.load(tmp_path / "out" / "counts")
    assert list(report.claims[0].values) == [4, 5, 6, 7, 8]
    listed = runner.invoke(app, ["list", "--output", output]).output
    assert f"1 of 1 claims hold ({report.date[:10]})" in rows(listed)["counts"]
    assert "A page that counts." in listed and "- The count is [one]." in listed


@pytest.mark.slow
def test_reproduce_all_goes_on_after_a_failure(pages, tmp_path):
    result = runner.invoke(app, ["reproduce", "--all", "--output", str(tmp_path)])
    assert result.exit_code == 1
    table = rows(result.output)
    assert list(table) == ["counts", "counts-wrong", "crashes"]
    assert "passed" in table["counts"]
    assert "0 of 1 claims hold" in table["counts-wrong"] and "FAILED" in table["counts-wrong"]
    assert "stopped with status 1" in table["crashes"] and "FAILED" in table["crashes"]
    board = json.loads((tmp_path / "scoreboard.json").read_text())
    assert [page["slug"] for page in board["pages"]] == ["counts", "counts-wrong", "crashes"]
    assert (board["num_claims"], board["num_claims_that_hold"]) == (2, 1)
    # What ran to its end is not run again.
    options = ["--output", str(tmp_path), "--jobs", "2"]
    again = runner.invoke(app, ["reproduce", "--all", *options])
    assert again.exit_code == 1 and "2 pages have run with this version" in again.output
    assert "crashes: stopped" in again.output and "counts-wrong: " not in again.output
    again = runner.invoke(app, ["reproduce", "--all", "--again", *options])
    assert "counts-wrong: 0 of 1 claims hold" in again.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["counts-wrnog"], "slug must be one of counts-wrong, counts, crashes; got 'counts-wrnog'"),
        ([], "give either slugs of pages or --all"),
        (["counts", "--all"], "give either slugs of pages or --all"),
        (["counts", "--seeds", "2"], "--seeds"),
        (["counts", "--seed", "-1"], "--seed"),
    ],
)
def test_bad_arguments_of_reproduce(pages, tmp_path, arguments, words):
    result = runner.invoke(app, ["reproduce", *arguments, "--output", str(tmp_path / "out")])
    assert result.exit_code == 2 and words in result.output
    assert not (tmp_path / "out").exists()


def test_reproduce_a_script_of_ones_own(pages, tmp_path):
    """What stands beside it can be imported, unlike beside a page of the package."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "beside.py").write_text("ONE = 1")
    script = folder / "my_page.py"
    script.write_text("'Mine.'\nimport beside\n" + PAGE.format(slug="mine", value="beside.ONE"))
    options = ["--output", str(tmp_path / "out")]
    result = runner.invoke(app, ["reproduce", str(script), *options])
    assert result.exit_code == 0, result.output
    assert "1 of 1 claims hold" in rows(result.output)["my-page"]
    result = runner.invoke(app, ["reproduce", str(folder / "no_page.py"), *options])
    assert result.exit_code == 2 and "no_page.py" in result.output


def test_a_page_without_its_packages_does_not_begin(pages, tmp_path, monkeypatch):
    page = commands._pages()[0].path
    page.write_text("import json\nfrom sklearn.svm import SVC\n" + page.read_text())
    monkeypatch.setitem(sys.modules, "sklearn", None)
    result = runner.invoke(app, ["reproduce", "counts", "--output", str(tmp_path / "out")])
    assert isinstance(result.exception, MissingModuleError)
    assert str(result.exception) == (
        "counts needs sklearn; install it with: pip install 'pyro-ext[data]'"
    )
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(sys, "argv", ["pyro-ext", "demo", "--output", str(tmp_path / "demo")])
    with pytest.raises(SystemExit, match="1"):
        commands.main()
    assert capsys.readouterr().err == (
        "demo needs matplotlib; install it with: pip install 'pyro-ext[demo]'\n"
    )
    assert not (tmp_path / "demo").exists(), "nothing has been done"


def test_doctor():
    result = runner.invoke(app, ["doctor", "--no-compile"])
    assert result.exit_code == 0
    for words in ("versions", "pyro-ppl", "devices", "cpu", "threads", "extras", "not tried"):
        assert words in result.output


def test_doctor_writes_json(monkeypatch):
    compiler = doctor.Compiler("g++", True, 2.5)
    monkeypatch.setattr(doctor, "try_compiler", lambda: compiler)
    result = runner.invoke(app, ["doctor", "--json"])
    content = json.loads(result.output)
    assert content["system"]["pyro-ext"] == __version__
    assert content["compiler"]["seconds"] == 2.5
    assert content["devices"][0]["device"] == "cpu" and content["extras"]["data"]["fix"] is None


def test_doctor_fails_without_a_core_requirement(monkeypatch):
    diagnosis = doctor.diagnose(compile=False)
    lost = replace(diagnosis.core[0], installed=None, fits=False)
    monkeypatch.setattr(doctor, "diagnose", lambda compile: replace(diagnosis, core=[lost]))
    assert runner.invoke(app, ["doctor"]).exit_code == 1


def test_counts_of_a_measure_have_a_distribution():
    """Mass one, and the mean of what is met over how many are met."""
    measure = GeneralizedGammaProcess(*torch.tensor([1.0, 0.3, 0.5], dtype=torch.double))
    counts = torch.arange(1.0, 200.0, dtype=torch.double)
    probabilities = demo.Occurrences(measure).log_prob(counts).exp()
    torch.testing.assert_close(probabilities.sum(), torch.ones((), dtype=torch.double))
    expected = measure.mean / measure.laplace_exponent(1.0)
    torch.testing.assert_close(probabilities @ counts, expected)


def test_part_of_the_texts_is_the_same_each_time():
    counts, truth = demo.read_some()
    assert torch.equal(counts, demo.read_some()[0]) and counts.min() == 1
    assert len(counts) < truth == load_frequencies("stemmed_words").num_kinds


def test_table_and_picture_have_all_methods(tmp_path):
    sites = ("discount", "tilt", "vocabulary")
    methods = ("NUTS", "SGHMC", "bootstrap")
    posteriors = {
        name: to_arviz({site: torch.randn(4, 50) for site in sites}, group_by_chain=True)
        for name in methods
    }
    assert list(demo.tabulate(posteriors).index) == [(s, m) for s in sites for m in methods]
    demo.draw(posteriors, 0, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5_000


@pytest.mark.slow
@pytest.mark.filterwarnings("error::pyro_ext.posterior.ConvergenceWarning")
def test_demo(tmp_path, capsys, request):
    """The run has nothing to warn of, its chains agree, and so do its methods."""
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    output = tmp_path / "demo"
    table = demo.run(output)
    printed = capsys.readouterr().out
    assert "ess_bulk" in printed and "27,858" in printed
    assert table["r_hat"].astype(float).max() < 1.01, printed
    numbers = table[["mean", "sd"]].astype(float)
    for site in ("discount", "tilt", "vocabulary"):
        reference = numbers.loc[(site, "NUTS")]
        of_site = numbers.loc[site]
        # The bootstrap is another posterior, near it where the model fits.
        assert (of_site["mean"] - reference["mean"]).abs().max() < 0.3 * reference["sd"], printed
        assert (of_site["sd"] / reference["sd"] - 1).abs().max() < 0.15, printed
    of_words = numbers.loc["vocabulary"]
    assert ((of_words["mean"] - 27_858).abs() < 2 * of_words["sd"]).all(), printed
    assert (output / "posteriors.png").stat().st_size > 5_000
    import xarray

    for name in ("nuts", "sghmc", "bootstrap"):
        with xarray.open_dataset(output / f"{name}.nc", group="posterior") as posterior:
            num_draws = 500 if name == "bootstrap" else 1000
            assert posterior["vocabulary"].shape == (4, num_draws), name
