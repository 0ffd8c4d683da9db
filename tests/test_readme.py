"""The example at the top of the README."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_example(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    # Fewer draws than the reader takes, so that the test does not take as long.
    code = code.replace("num_samples=500", "num_samples=100").replace("steps=2000", "steps=500")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert "r_hat" in capsys.readouterr().out
    assert names["mcmc"].get_samples()["weight"].shape == (400, 30)


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)]+)\)", README.read_text())
    assert targets
    for target in targets:
        assert (README.parent / target).exists(), target
