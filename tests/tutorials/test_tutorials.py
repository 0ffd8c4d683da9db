"""Pages on workflows run: shortly, where no tests of their own do, and in full to their ends."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import PAPERS, REPORTS, pages
from tests.tutorials.papers.test_claims import FAILED

WORKFLOWS = [page for page in pages() if page.path.parent != PAPERS]
FAILING = ("misspecified-models",)  # a claim fails, and stays with its reason
IN_EVERY_RUN = ("bayesian-networks", "quickstart")  # of short runs, the rest of which are slow


def short_runs():
    for page in WORKFLOWS:
        if not Path(__file__).with_name(f"test_{page.path.stem}.py").exists():
            mark = pytest.mark.short_page if page.slug in IN_EVERY_RUN else pytest.mark.slow
            yield pytest.param(page.path, id=page.slug, marks=mark)


@pytest.mark.parametrize("path", list(short_runs()))
def test_short_run(path, tmp_path):
    switches = {"PYRO_EXT_FIGURES": str(tmp_path), "PYRO_EXT_SMOKE": "1", "MPLBACKEND": "Agg"}
    result = subprocess.run(
        [sys.executable, str(path)],
        env=os.environ | switches,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert result.stdout and "nan" not in result.stdout.lower().split()
    assert all(path.stat().st_size > 3_000 for path in tmp_path.glob("*.png"))
    assert list(tmp_path.glob("*.png"))


@pytest.mark.page
@pytest.mark.parametrize("full_run", [page.slug for page in WORKFLOWS], indirect=True)
def test_full_run_meets_its_claims(full_run):
    """What a page without claims checks by itself it checks in full runs only."""
    assert full_run.returncode == (full_run.page.slug in FAILING)
    assert list((REPORTS / full_run.page.slug).glob("*.png"))


def test_papers_are_pyro_programs():
    """Each page shows its paper's method by sites and Pyro's machinery."""
    program = re.compile(r"pyro\.sample\(|\b(SVI|MCMC|Predictive)\(")
    papers = set(pages()) - set(WORKFLOWS)
    assert not [p.slug for p in papers if not program.search(p.path.read_text("utf-8"))]


def test_every_page_can_be_read_in_five_minutes():
    """No page has more than 230 lines of code; text, comments and blank lines do not count."""
    lines = {page.path: code_lines(page.path.read_text("utf-8")) for page in pages()}
    assert not {path.name: number for path, number in lines.items() if number > 230}


def code_lines(source):
    """Return the number of lines without blank ones, comments and docstrings."""
    nodes = [node for node in ast.walk(ast.parse(source)) if hasattr(node, "lineno")]
    is_text = [isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) for n in nodes]
    texts = {
        line
        for node, text in zip(nodes, is_text, strict=True)
        if text
        for line in range(node.lineno, node.end_lineno + 1)
    }
    kept = enumerate(source.splitlines(), 1)
    return sum(n not in texts and line.strip()[:1] not in ("", "#") for n, line in kept)


def test_lines_of_text_are_no_code():
    source = (
        '"""About\nit."""\n\n# %%\nx = """a\nb"""\n\n\ndef f():\n    """Text."""\n    return x\n'
    )
    assert code_lines(source) == 4


def test_one_claim_of_every_paper_is_central():
    for page in set(pages()) - set(WORKFLOWS):
        calls = [n for n in ast.walk(ast.parse(page.path.read_text("utf-8"))) if is_central(n)]
        assert len(calls) == 1, page.slug


def is_central(node):
    words = node.keywords if isinstance(node, ast.Call) else []
    return any(word.arg == "central" and word.value.value is True for word in words)


def test_every_paper_has_a_test_that_reads_its_report():
    for page in set(pages()) - set(WORKFLOWS):
        module = Path(__file__).parent / "papers" / f"test_{page.path.stem}.py"
        has_own = "@pytest.mark.page\n" in module.read_text("utf-8")
        assert has_own != (page.slug in FAILED), page.slug


# Numbers of papers and exact ones: a potential on a line and at a saddle, chance, a square.
NOT_FROM_A_RUN = {
    "functional-adjoint-sampler": {12.7, 40.7},
    "tspear-tshield": {0.089},
    "pseudocoreset-divergences": {0.0001},
    "bomf": {0.0003},
    "amortized-clustering": {1.01},  # the usual limit of R-hat
    "quickstart": {1.3},  # a temperature, as the how-to has it
    "diagnosing": {1.1, 1.4},
}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.slug)
def test_numbers_in_prose_are_settings(page):
    """What a run found is printed by it; decimals in text and reasons are constants of the code."""
    text = page.path.read_text("utf-8")
    tree = ast.parse(text)
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    known = {float(value) for value in constants if type(value) in (int, float)}
    cells = re.split(r"^# %%", text, flags=re.MULTILINE)
    prose = "".join(cell for cell in cells if cell.startswith(" [markdown]"))
    reasons = [node for node in ast.walk(tree) if getattr(node, "arg", None) == "reason"]
    prose += " ".join(
        str(part.value)
        for reason in reasons
        for part in ast.walk(reason)
        if isinstance(part, ast.Constant)
    )
    prose = re.sub(r"\$\$.*?\$\$|\$[^$]*\$|`[^`]*`", "", prose, flags=re.DOTALL)
    decimals = {float(text) for text in re.findall(r"(?<![\w.])\d*\.\d+(?![\w.]*\.\d)", prose)}
    percents = {number for value in known for number in (value, 100 * value, value / 100)}
    assert not decimals - percents - NOT_FROM_A_RUN.get(page.slug, set())
