"""The tutorials as notebooks: all convert, none needs what a notebook lacks, some are run."""

import ast
import os

import pytest
from typer.testing import CliRunner

from pyro_ext.cli.commands import _tutorials, app
from tests.pages import PAPERS, TUTORIALS, pages
from tests.test_cli import WIDE

nbformat = pytest.importorskip("nbformat")

# What only a script has; a pool of processes reads its script again, and a notebook is none.
ABSENT = ("__file__", "__name__", "sys.argv", "sys.exit", "ProcessPoolExecutor", "multiprocessing")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """All notebooks, by the names of their pages."""
    folder = tmp_path_factory.mktemp("notebooks")
    result = CliRunner().invoke(app, ["notebooks", str(folder)])
    assert result.exit_code == 0, result.output
    return {path.stem.replace("_", "-"): path for path in folder.rglob("*.ipynb")}


def code_of(path) -> str:
    cells = nbformat.read(path, 4).cells
    return "\n\n\n".join(cell.source for cell in cells if cell.cell_type == "code")


@pytest.mark.slow
def test_every_tutorial_becomes_a_notebook(written, subtests):
    assert set(written) == {page.slug for page in pages()}
    for page in pages():
        with subtests.test(page.slug):
            notebook = nbformat.read(written[page.slug], 4)
            nbformat.validate(notebook)
            assert notebook.metadata.kernelspec.name == "python3"
            first, *others = notebook.cells
            assert first.cell_type == "markdown" and first.source.startswith("# ")
            assert page.title in first.source and len(others) > 5
            # All code but the docstring, in its order.
            script = ast.parse(page.path.read_text("utf-8"))
            code = ast.parse(code_of(written[page.slug]))
            assert ast.dump(ast.Module(script.body[1:], [])) == ast.dump(code)
            assert (written[page.slug].parent.name == "papers") == (page.path.parent == PAPERS)


@pytest.mark.slow
def test_no_tutorial_needs_what_a_notebook_lacks(written, subtests):
    for slug, path in written.items():
        with subtests.test(slug):
            tree = ast.parse(code_of(path))
            used = set()
            for node in ast.walk(tree):
                if isinstance(node, ast.Name | ast.Attribute):
                    used.add(ast.unparse(node))
                elif isinstance(node, ast.Import | ast.ImportFrom):
                    used |= {getattr(node, "module", ""), *(alias.name for alias in node.names)}
            assert not used & set(ABSENT)


@pytest.mark.slow
@pytest.mark.parametrize("slug", ["quickstart", "soft-equivariance"])
def test_notebook_runs(written, slug, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYRO_EXT_SMOKE", "1")
    monkeypatch.setenv("PYTHONPATH", str(TUTORIALS.parent), os.pathsep)
    notebook = nbformat.read(written[slug], 4)
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any(output.output_type == "stream" for output in outputs)
    assert not any(output.output_type == "error" for output in outputs)
    assert list((tmp_path / "figures" / slug).glob("*.png"))


def test_some_by_name(tmp_path):
    pytest.importorskip("jupytext")
    arguments = ["notebooks", str(tmp_path), "nuts", "px-sgmcmc"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "nuts.ipynb").exists() and (tmp_path / "papers/px_sgmcmc.ipynb").exists()
    (tmp_path / "nuts.ipynb").unlink()
    again = CliRunner().invoke(app, arguments, env=WIDE)
    assert again.exit_code == 2 and "px_sgmcmc.ipynb exists" in again.output
    assert not (tmp_path / "nuts.ipynb").exists(), "all or none"


def test_unknown_names(tmp_path):
    result = CliRunner().invoke(app, ["notebooks", str(tmp_path / "new"), "nutz"], env=WIDE)
    assert result.exit_code == 2 and "nuts" in result.output
    assert not (tmp_path / "new").exists()


def test_tutorials_are_all_pages():
    assert [page.slug for page in _tutorials()] == [page.slug for page in pages()]
