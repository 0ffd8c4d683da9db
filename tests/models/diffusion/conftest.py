"""A pipeline of diffusers, for what depends on its parts and not on what it learned."""

import pytest

from pyro_ext.models.diffusion import digit_pipeline


@pytest.fixture(scope="module")
def pipeline():
    return digit_pipeline(num_steps=0)
