"""Machine code: made without the data, kept between processes, and replaced where it is damaged."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.inference import MCMC, NUTS
from pyro_ext.inference.hmc import loop
from pyro_ext.potential import (
    CaptureError,
    capture,
    capture_abstract,
    compilation,
    compile_graph,
)
from pyro_ext.potential.compilation import lift_constants

while_loop = torch.ops.higher_order.while_loop


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of libraries."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pyro_ext" / "compiled"


@pytest.fixture
def compilations(monkeypatch):
    """Graphs that were compiled, rather than loaded."""
    made = []
    make = compilation._make_library

    def count(graph, arguments):
        made.append(graph)
        return make(graph, arguments)

    monkeypatch.setattr(compilation, "_make_library", count)
    return made


def weighted(weights):
    return capture(lambda x: {"sum": (weights * x).sum(), "parts": (weights * x,)}, torch.ones(3))


def power(factors):
    """A graph that multiplies by frozen numbers as often as it is told."""

    def function(count, x):
        def proceed(number, *others):
            return number < others[-2]

        def body(number, value, *others):
            return number + 1, value * factors

        start = torch.zeros_like(count)
        return while_loop(proceed, body, (start, x), (count, x))[1:]

    return capture_abstract(function, torch.tensor(3), torch.ones(2))


def normal_model(data):
    mean, scale = (pyro.sample(name, dist.LogNormal(0.0, 1.0)) for name in ("mean", "scale"))
    with pyro.plate("data", len(data)):
        pyro.sample("x", dist.Normal(mean, scale), obs=data)


def test_constants_become_arguments():
    weights = torch.tensor([1.0, 2.0, 4.0])
    lifted, constants, structure = lift_constants(weighted(weights))
    assert len(constants) == 1 and constants[0] is weights and structure.num_leaves == 2
    total, product = lifted(torch.ones(3), 2 * weights)
    assert total == 14.0 and product.tolist() == [2.0, 4.0, 8.0]
    assert not list(lifted.graph.find_nodes(op="get_attr"))


def test_constants_in_a_loop_become_arguments():
    factors = torch.tensor([2.0, 3.0])
    lifted, constants, _ = lift_constants(power(factors))
    assert len(constants) == 1 and constants[0] is factors
    (result,) = lifted(torch.tensor(3), torch.ones(2), torch.tensor([5.0, 1.0]))
    assert result.tolist() == [125.0, 1.0]
    (result,) = power(factors)(torch.tensor(2), torch.ones(2))
    assert result.tolist() == [4.0, 9.0]


@pytest.mark.slow
def test_code_is_kept_and_knows_no_data(folder, compilations):
    weights = torch.tensor([1.0, 2.0, 4.0])
    first = compile_graph(weighted(weights), torch.ones(3))
    second = compile_graph(weighted(10 * weights), torch.ones(3))
    assert len(compilations) == 1 and len(list(folder.iterdir())) == 1
    x = torch.tensor([1.0, 1.0, 0.5])
    assert first(x)["sum"] == 5.0 and second(x)["sum"] == 50.0
    assert second(x)["parts"][0].tolist() == [10.0, 20.0, 20.0]
    weights.zero_()  # what is frozen is the tensor, not its numbers
    assert first(x)["sum"] == 0.0
    # Other types and strides than those it was compiled for.
    assert second(x.double())["sum"].dtype == torch.float64
    assert second(x.repeat_interleave(2)[::2])["sum"] == 50.0


@pytest.mark.slow
def test_loops_are_compiled(folder, compilations):
    for factors in ([2.0, 3.0], [1.0, 5.0]):
        compiled = compile_graph(power(torch.tensor(factors)), torch.tensor(3), torch.ones(2))
        (result,) = compiled(torch.tensor(2), torch.ones(2))
        assert result.tolist() == [factor**2 for factor in factors]
    assert len(compilations) == 1


@pytest.mark.slow
def test_damaged_code_is_replaced(folder, compilations):
    graph = weighted(torch.ones(3))
    compile_graph(graph, torch.ones(3))
    (library,) = folder.iterdir()
    whole = library.read_bytes()
    for damaged in (
        b"",
        whole[:-1],
        whole[: len(whole) // 2] + b"0" + whole[len(whole) // 2 + 1 :],
    ):
        library.write_bytes(damaged)
        assert compile_graph(graph, torch.ones(3))(torch.ones(3))["sum"] == 3.0
        assert library.read_bytes() == whole
    assert len(compilations) == 4


@pytest.mark.slow
def test_folders_of_others_are_not_trusted(folder, compilations, monkeypatch):
    graph = weighted(torch.ones(3))
    compile_graph(graph, torch.ones(3))
    folder.chmod(0o777)
    assert compile_graph(graph, torch.ones(3))(torch.ones(3))["sum"] == 3.0
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)  # no folder at all
    assert compile_graph(graph, torch.ones(3))(torch.ones(3))["sum"] == 3.0
    assert len(compilations) == 3


def test_digest_follows_what_code_depends_on(monkeypatch):
    def digest(graph, *arguments):
        lifted, constants, _ = lift_constants(graph)
        return compilation._digest(lifted, [*arguments, *constants])

    x, y = torch.ones(3), torch.ones(2)
    plain = capture(lambda x: x.sin(), x)
    known = digest(plain, x)
    assert digest(capture(lambda x: x.sin(), x), x) == known
    others = {
        digest(capture(lambda x: x.cos(), x), x),
        digest(capture(lambda x: x.sin() + 1e-16, x), x),
        digest(plain, x.double()),
        digest(plain, torch.ones(6)[::2]),
        digest(power(y), torch.tensor(1), y),
    }
    monkeypatch.setattr(torch, "__version__", "another")
    others.add(digest(plain, x))
    assert len(others | {known}) == 7


SECOND_PROCESS = """
import sys, torch
from pyro_ext.potential import capture, compile_graph
compiled = compile_graph(capture(lambda x: x.exp(), torch.ones(3)), torch.ones(3))
print(compiled(torch.zeros(3)).tolist(), "torch._inductor.compile_fx" in sys.modules)
"""


@pytest.mark.slow
def test_second_process_does_without_the_compiler(folder):
    for number, seed in enumerate("12"):  # of the hashes of strings, and so the order of sets
        result = subprocess.run(
            [sys.executable, "-c", SECOND_PROCESS],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout.strip() == f"[1.0, 1.0, 1.0] {number == 0}"


@pytest.mark.slow
def test_a_second_process_records_no_transitions(folder, monkeypatch):
    """With data of its own it finds the code by the density, whose draws are the same bits."""

    def run(seed):
        data = torch.randn(20, generator=torch.Generator().manual_seed(seed))
        loop._kept.clear()
        mcmc = MCMC(NUTS(normal_model, backend="compile"), 30, seed=0, progress=False)
        return mcmc.run(data).get_samples()["mean"]

    def refuse(*_):
        raise RuntimeError("recorded")

    draws = [run(seed) for seed in (1, 2)]
    assert not torch.equal(*draws)
    monkeypatch.setattr(loop, "capture_abstract", refuse)
    for seed, expected in zip((1, 2), draws, strict=True):
        torch.testing.assert_close(run(seed), expected, rtol=0, atol=0)
    monkeypatch.setattr(loop, "_sources", lambda: "of another version")
    with pytest.warns(UserWarning, match="recorded"):
        run(1)


@pytest.mark.slow
def test_a_compiler_that_refuses_instructions_compiles_without(folder, monkeypatch):
    from torch._inductor.codecache import pick_vec_isa
    from torch._inductor.exc import CppCompileError
    from torch._inductor.graph import GraphLowering

    generate, attempts = GraphLowering.codegen_with_cpp_wrapper, []

    def refuse_instructions(lowering):
        attempts.append(bool(pick_vec_isa()))
        if attempts[-1]:
            raise CppCompileError(["g++"], "unrecognized command-line option")
        return generate(lowering)

    monkeypatch.setattr(GraphLowering, "codegen_with_cpp_wrapper", refuse_instructions)
    large = torch.ones(1 << 17)
    graph = capture(lambda x: x + large, large)
    torch.testing.assert_close(compile_graph(graph, large)(large), 2 * large)
    assert attempts.count(True) <= 1  # the second may be in a cache of PyTorch


def test_cycles_are_collected_again_after_a_failure():
    def fails(x):
        assert not gc.isenabled()
        raise ValueError("no")

    with pytest.raises(CaptureError, match="no"):
        capture(fails, torch.ones(3))
    assert gc.isenabled()
