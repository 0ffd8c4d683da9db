"""A short run of the page that a module is about."""

import runpy

import pytest

from tests.tutorials.papers.pages import PAPERS


@pytest.fixture(scope="module")
def short_run(request, tmp_path_factory):
    """Names of the page ``PAGE`` of the module after a short run, and the folder it saved in."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYRO_EXT_SMOKE", "1")
        patch.setenv("PYRO_EXT_FIGURES", str(folder))
        patch.delenv("PYRO_EXT_SEEDS", raising=False)
        return runpy.run_path(str(PAPERS / request.module.PAGE), run_name="__main__"), folder
