"""The tiers of the tests: a limit on CPU seconds, a record of them, and parts for CI."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyro_ext._pages import find_pages
from tests import durations, pages

ROOT = Path(__file__).parents[1]


TESTS = """
import pytest
from tests.durations import CPUSeconds

def work(seconds):
    import time
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

@pytest.fixture(scope="module")
def prepared():
    work(0.15)

def test_quick():
    pass

def test_long():
    work(0.3)

def test_first(prepared):
    work(0.15)

def test_second(prepared):
    work(0.15)

@pytest.mark.slow
def test_slow():
    work(0.3)

def test_with_a_child():
    import subprocess, sys
    subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.3: pass"])
"""
