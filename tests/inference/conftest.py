"""Fixtures of tests of drivers."""

import pytest

from tests.inference import models


@pytest.fixture
def x():
    """Data of the model in ``models.py``."""
    return models.data()
