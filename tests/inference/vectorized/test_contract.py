"""What a kernel of one's own has to keep to, and what the errors say where it does not."""

from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.inference import HMC, MCMC, NUTS, SGHMC, SGLD, LaplaceHMC, VectorizedKernel
from pyro_ext.inference.vectorized import Info


def model():
    pyro.sample("x", dist.Normal(0.0, 1.0))


class Reversed(NamedTuple):
    energy: torch.Tensor
    position: torch.Tensor


class Kernel(VectorizedKernel):
    def __init__(self, model=None, *, scale=1.0, **options):
        super().__init__(model, **options)
        self.width = scale

    def _init(self, position, keys):
        return Reversed(position[:, 0], position)

    def _step(self, state, function, noise, **schedules):
        return state, Info(function(state.position)[0])


def test_states_begin_with_the_position():
    with pytest.raises(TypeError, match="named tuple whose first field is position, got Reversed"):
        MCMC(Kernel(model), 2, progress=False).run()


def test_arguments_are_attributes_of_their_names():
    with pytest.raises(TypeError, match=r"Kernel must keep its arguments \['scale'\]"):
        Kernel(model).settings()


# Words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel_type", "word", "message"),
    [
        (NUTS, "jit_compile", 'NUTS has no argument .*write backend="compile"'),
        (HMC, "ignore_jit_warnings", "leave it out"),
        (NUTS, "max_plate_nesting", "plates are counted"),
        (NUTS, "dense_mass", "write full_mass"),
        (SGLD, "num_warmup", "warmup_steps=... as an argument of MCMC"),
        (SGHMC, "num_chains", "it is an argument of MCMC"),
        (SGLD, "lr", "write step_size"),
        (LaplaceHMC, "trajectory_len", "did you mean trajectory_length"),
        (NUTS, "whatever", "it takes .*max_tree_depth.*step_size.*backend"),
        (Kernel, "jit_compile", 'Kernel has no argument .*write backend="compile"'),
    ],
)
def test_words_of_others_are_named_with_what_to_write(kernel_type, word, message):
    with pytest.raises(TypeError, match=f"'{word}'.*{message}|{message}") as caught:
        kernel_type(model, **{word: 1})
    assert repr(word) in str(caught.value)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("num_warmup", "write warmup_steps"),
        ("progress_bar", "write progress"),
        ("rng_key", "write seed"),
        ("mp_context", "ProcessPoolExecutor"),
        ("jit_compile", 'give the kernel backend="compile"'),
        ("max_plate_nesting", "plates are counted"),
        ("step_size", "it is an argument of the kernel"),
        ("num_chain", "did you mean num_chains"),
    ],
)
def test_words_of_other_drivers(word, message):
    with pytest.raises(TypeError, match=f"MCMC has no argument '{word}': .*{message}"):
        MCMC(SGLD(model), 2, **{word: 1})


def test_num_steps_are_pyros():
    """Leapfrog steps of HMC; of other kernels an old name, and so is our own word for them."""
    kernel = HMC(model, num_steps=4, step_size=0.1, adapt_step_size=False)
    assert kernel.settings()["num_steps"] == 4
    mcmc = MCMC(kernel, 5, seed=0, progress=False).run()
    assert (mcmc.sample_statistics()["n_steps"] == 4).all()
    for kernel_type in (HMC, LaplaceHMC):
        with pytest.warns(FutureWarning, match="num_leapfrog_steps is called num_steps"):
            assert kernel_type(model, num_leapfrog_steps=4).num_steps == 4
    with pytest.warns(FutureWarning, match="num_leapfrog_steps is called num_steps"):
        assert kernel.num_leapfrog_steps == 4
    for kernel_type in (NUTS, SGLD):
        with pytest.warns(FutureWarning, match="num_steps is called steps_per_sample"):
            kernel = kernel_type(model, num_steps=3)
        assert kernel.steps_per_sample == 3
        with pytest.warns(FutureWarning, match="num_steps is called steps_per_sample"):
            assert kernel.num_steps == 3
