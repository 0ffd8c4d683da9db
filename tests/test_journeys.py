"""Five journeys by the shortest calls that the documents show end in an answer that is right.

Each script of `tests/journeys` has data that no page uses, and checks its answer by itself.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

JOURNEYS = sorted(Path(__file__).with_name("journeys").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", JOURNEYS, ids=lambda path: path.stem)
def test_journey(path, tmp_path):
    result = subprocess.run(
        [sys.executable, "-P", str(path)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]


def test_there_are_five():
    assert len(JOURNEYS) == 5
