"""Requirements are looked up in metadata, here that of distributions made up for the purpose."""

import pytest

from pyro_ext._lib.requirements import Finding, extra_with, extras, findings, pip_line


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution that is nothing but metadata."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name, version, *requires, extras=()):
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Provides-Extra: {extra}" for extra in extras]
        lines += [f"Requires-Dist: {requirement}" for requirement in requires]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")

    return install


def states(found):
    return {finding.name: finding.state for finding in found}


def test_core_requirements(install):
    install("made-core", "1.0")
    install("made-old", "1.0")
    install("made-early", "2.0rc1")
    install(
        "made-up",
        "0.1",
        "made-core>=1.0",
        "made-old>=1.5,<2",
        "made-early>=2.0rc0",
        "made-nowhere",
        'made-elsewhere>=1; sys_platform == "nowhere"',
        'made-always; python_version > "3"',
        'made-extra; extra == "more"',
        extras=["more"],
    )
    assert states(findings("made-up")) == {
        "made-core": "ok",
        "made-old": "wrong version",
        "made-early": "ok",
        "made-nowhere": "missing",
        "made-always": "missing",
    }
    assert states(findings("made-up", "more")) == {"made-extra": "missing"}
    assert findings("made-up")[1] == Finding("made-old", "<2,>=1.5", "", "1.0", False)


def test_extras_of_extras(install):
    install("made-part", "1.0")
    install("made-whole", "3.0", "made-lost>=4; extra == 'all'", "made-part", extras=["all"])
    install(
        "made-up",
        "0.1",
        "made-part; extra == 'part'",
        "made-whole[all]>=3; extra == 'whole'",
        "Made_Up[part,whole]; extra == 'every'",
        "made-up[every]; extra == 'every'",
        extras=["part", "whole", "every"],
    )
    assert extras("made-up") == ["part", "whole", "every"]
    assert states(findings("made-up", "part")) == {"made-part": "ok"}
    # It is installed, and what its own extra needs is not.
    assert states(findings("made-up", "whole")) == {"made-whole": "ok", "made-lost": "missing"}
    every = findings("made-up", "every")
    assert states(every) == {"made-part": "ok", "made-whole": "ok", "made-lost": "missing"}
    assert len(every) == 3


def test_extras_of_what_is_missing(install):
    install("made-up", "0.1", "made-nowhere[fast]>=2; extra == 'x'", extras=["x"])
    (finding,) = findings("made-up", "x")
    assert finding == Finding("made-nowhere", ">=2", "[fast]", None, False)
    assert pip_line([finding]) == "python -m pip install 'made-nowhere[fast]>=2'"


def test_own_extras():
    assert {"data", "plots", "test", "all"} <= set(extras("pyro-ext"))
    names = {finding.name for finding in findings("pyro-ext", "all")}
    assert {"scikit-learn", "matplotlib"} <= names and "torch" not in names


def test_extra_that_brings_a_module(install):
    install(
        "made-up",
        "0.1",
        "made-core",
        'scikit-learn; extra == "data"',
        'made-up[data]; extra == "all"',
        'Made.Plots; extra == "all"',
        extras=("data", "all"),
    )
    assert extra_with("made-up", "sklearn") == "data"
    assert extra_with("made-up", "made_plots") == "all"
    assert extra_with("made-up", "made_core") is None
    assert extra_with("made-nowhere", "sklearn") is None
