"""What a kernel of one's own has to keep to, and what the errors say where it does not."""

from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.inference import HMC, MCMC, NUTS, SGHMC, SGLD, Gibbs, LaplaceHMC, VectorizedKernel
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
    """Leapfrog steps of HMC, and of no other kernel."""
    kernel = HMC(model, num_steps=4, step_size=0.1, adapt_step_size=False)
    assert kernel.settings()["num_steps"] == 4
    mcmc = MCMC(kernel, 5, seed=0, progress=False).run()
    assert (mcmc.sample_statistics()["n_steps"] == 4).all()
    for kernel_type in (NUTS, SGLD):
        with pytest.raises(TypeError, match="no argument 'num_steps': .*write steps_per_sample"):
            kernel_type(model, num_steps=3)


def test_it_compiles_where_that_pays(tmp_path, monkeypatch):
    """By numbers of steps and operations; a run that goes on keeps to what it began with."""
    kernel = NUTS(model)
    kernel.setup(100)
    assert [kernel.choose_backend(steps) for steps in (100, 10**6)] == ["trace", "compile"]
    assert kernel.note.startswith("compiling, some")
    assert kernel.choose_backend(10**6, "trace") == "trace" and not kernel.note
    # Trajectories are longer where there are more unknowns.
    wide = NUTS(lambda: pyro.sample("x", dist.Normal(torch.zeros(1_000), 1.0).to_event(1)))
    wide.setup(100)
    assert wide.choose_backend(100) == "compile"
    for backend in ("eager", "trace", "compile"):
        own = SGLD(model, backend=backend)
        own.setup(0)
        assert own.choose_backend(10**9) == backend
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(UserWarning, match=r"steps are not compiled; .* no C\+\+ compiler"):
        assert kernel.choose_backend(10**6) == "trace"
    assert kernel.note == "not compiled: no C++ compiler"
    monkeypatch.delenv("CXX")
    options = {"num_chains": 2, "seed": 0, "progress": False}
    expected = MCMC(NUTS(model), 8, 5, **options).run().get_samples()
    MCMC(NUTS(model), 3, 5, **options, checkpoint=tmp_path).run()
    monkeypatch.setattr("pyro_ext.inference.vectorized.backends.compiling_pays", lambda *_: True)
    again = MCMC(NUTS(model), 8, 5, **options, checkpoint=tmp_path).run().get_samples()
    torch.testing.assert_close(again, expected, rtol=0.0, atol=0.0)


def test_kernels_that_adapt_warm_up_as_long_as_they_sample(tmp_path):
    """As under Pyro's driver; a run that goes on has the warm-up that it had."""
    adapting = (NUTS(model), HMC(model), pyro.infer.NUTS(model), Gibbs([(NUTS(model), ["x"])]))
    assert [MCMC(kernel, 7).warmup_steps for kernel in adapting] == [7] * 4
    fixed = NUTS(model, adapt_step_size=False, adapt_mass_matrix=False)
    assert [MCMC(kernel, 7).warmup_steps for kernel in (SGLD(model), LaplaceHMC(model), fixed)] == [
        0
    ] * 3
    assert MCMC(NUTS(model), 7, 0).warmup_steps == 0
    options = {"seed": 0, "progress": False, "checkpoint": tmp_path}
    MCMC(NUTS(model), 4, **options).run()
    assert MCMC(NUTS(model), 6, **options).run().warmup_steps == 4
