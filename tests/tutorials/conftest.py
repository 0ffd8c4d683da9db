"""A short run of the page that a module is about, and what its last run in full left."""

import os
import runpy
from contextlib import redirect_stdout

import pyro
import pytest
import torch

from pyro_ext.reproduction.pages import PRINTED_NAME, last_outcome
from tests.pages import REPORTS, check_short_report, page_named


@pytest.fixture(scope="module")
def short_run(request, tmp_path_factory):
    """Names of the page ``PAGE`` of the module after a short run, and the folder it saved in.

    Of every page it is asked that it saves its claims and figures.
    """
    folder = tmp_path_factory.mktemp("page")
    default = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch, (folder / "printed.txt").open("w") as printed:
        patch.setenv("PYRO_EXT_SMOKE", "1")
        patch.setenv("PYRO_EXT_FIGURES", str(folder))
        patch.delenv("PYRO_EXT_SEEDS", raising=False)
        try:
            with redirect_stdout(printed):
                path = page_named(request.module.PAGE).path
                names = runpy.run_path(os.fspath(path), run_name="__main__")
        finally:
            torch.set_default_dtype(default)
            pyro.clear_param_store()
    check_short_report(folder, request.module.PAGE)
    return names, folder


@pytest.fixture
def names(short_run):
    """Names of the page after a short run."""
    return short_run[0]


@pytest.fixture
def parts(short_run, float64):
    """Names of the page after a short run, in double precision."""
    return short_run[0]


@pytest.fixture
def full_run(request):
    """How the page ``PAGE`` of the module ended in full; its claims are those that it lists."""
    page = page_named(getattr(request, "param", None) or request.module.PAGE)
    if (outcome := last_outcome(page, REPORTS)) is None:
        pytest.skip("make pages runs it")
    printed = (REPORTS / page.slug / PRINTED_NAME).read_text("utf-8")
    assert outcome.report or not outcome.returncode, printed[-4000:]
    claims = outcome.report.claims if outcome.report else []
    assert [claim.statement for claim in claims] == list(page.statements)
    assert not (outcome.report and outcome.report.smoke)
    return outcome
