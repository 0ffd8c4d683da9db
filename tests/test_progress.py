"""Progress: drawn on a terminal, a line a tenth in a file."""

import io
import sys

import pytest

from pyro_ext._lib.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("step", [1, 7, 400])
def test_a_file_gets_a_line_a_tenth(step, capsys):
    with progress_bar(total=1000, desc="Run", unit="step", mininterval=0) as bar:
        done = 0
        while done < 1000:
            bar.set_postfix(value=done, refresh=False)
            bar.update(min(step, 1000 - done))
            done += step
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (10 if step < 100 else 3)
    assert all(line.startswith("Run: ") and "\r" not in line for line in lines)
    assert "100%" in lines[-1] and "1000/1000" in lines[-1]


def test_the_rate_of_a_line_is_that_of_all_steps(capsys):
    with progress_bar(total=300, unit="step") as bar:
        start = bar.start_t
        for done, seconds in ((1, 1.2), (299, 1.21)):
            bar._time = lambda seconds=seconds: start + seconds
            bar.update(done)
    assert "247.93step/s" in capsys.readouterr().err.splitlines()[-1]


def test_a_file_hears_where_it_ended(capsys):
    with pytest.raises(KeyboardInterrupt), progress_bar(total=1000) as bar:
        bar.update(333)
        raise KeyboardInterrupt
    assert "333/1000" in capsys.readouterr().err.splitlines()[-1]
    for number in progress_bar(range(3), desc="Loop", disable=True):
        assert number < 3
    assert capsys.readouterr().err == ""


def test_a_terminal_is_drawn_on(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar(total=10, mininterval=0) as bar:
        bar.update(5)
    assert "\r" in terminal.getvalue()
