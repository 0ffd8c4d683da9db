"""Checks of a sampler's kernel: the reproducibility of its draws, settings, arguments, moments."""

import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cloudpickle
import pyro
import torch
from pyro.infer.autoguide.initialization import init_to_sample
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyro_ext.checkpoint.chains import Chunk, gather_chains
from pyro_ext.checkpoint.files import read_tensors, write_tensors
from pyro_ext.inference.driver.segments import GroupState, silent
from pyro_ext.inference.mcmc import MCMC
from pyro_ext.inference.vectorized import Chains, VectorizedKernel
from pyro_ext.posterior.identity import kernel_identity
from pyro_ext.testing.potential import _compare

__all__ = ["check_gaussian", "check_kernel", "check_segments"]

KernelType = Callable[..., VectorizedKernel]
Options = Mapping[str, Any]

_BAD_ARGUMENTS: tuple[tuple[str, Any], ...] = (
    *(("step_size", value) for value in (-0.1, 0.0, math.nan, math.inf, "0.1")),
    *(("temperature", value) for value in (-1.0, math.nan, math.inf, "cold")),
    *(("steps_per_sample", value) for value in (0, 1.5, "1")),
    ("backend", "no backend"),
    ("init_strategy", 3),
    ("control_variate", "no anchor"),
)


def check_kernel(
    kernel_type: KernelType,
    model: Callable[..., Any],
    *args: Any,
    options: Options | None = None,
    checks: Sequence[str] = ("arguments", "settings", "draws", "drivers"),
    backends: Sequence[str] = ("eager", "trace"),
    num_chains: int = 3,
    steps: Sequence[int] = (1, 2, 3, 7, 8, 20),
    seed: int = 0,
    tolerance: float = 1e-4,
    **kwargs: Any,
) -> None:
    """Check everything about a kernel except its stationary distribution.

    - ``"arguments"``: errors for the arguments that all kernels share name the argument.
    - ``"settings"``: the settings equal the arguments, a copy with other settings keeps the rest,
      and a pickled kernel, used or not, draws the same values and contains neither graphs nor
      compiled code.
    - ``"draws"``: draws depend only on the seed, the index of the chain and the step. They are the
      same on every backend, alone or among other chains, even if one of those is NaN, and whatever
      the state of PyTorch's generator; and equal to the last bit if a run stops, is pickled and
      continues.
    - ``"drivers"``: the drivers of Pyro and of this package give new draws inside the support; ours
      gives the same draws for chains run together or one after the other.

    :param kernel_type: a subclass of :class:`~pyro_ext.inference.VectorizedKernel`.
    :param model: a Pyro model, preferably one that uses minibatches.
    :param args: positional arguments of the model.
    :param options: keyword arguments of the constructor, with a step size at which chains stay
        finite.
    :param checks: the checks to make.
    :param backends: the backends to compare; the others are compared with the first.
    :param int num_chains: number of chains, at least two.
    :param steps: increasing numbers of steps after which draws are compared.
    :param int seed: seed of the chains.
    :param float tolerance: allowed difference between backends, and between a chain alone and among
        others, relative to the size of the values.
    :param kwargs: keyword arguments of the model.
    :raises AssertionError: if a check fails; the message says which, and by how much.

    Example::

        >>> from pyro_ext.inference import SGLD
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x), subsample_size=5) as index:
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])
        >>> check_kernel(SGLD, model, torch.zeros(20), options={"step_size": 1e-3})
    """
    given = dict(options or {})

    def ready(kernel: VectorizedKernel) -> VectorizedKernel:
        kernel.setup(0, *args, **kwargs)
        return kernel

    if "arguments" in checks:
        _check_arguments(kernel_type, model, given)
    if "settings" in checks:
        _check_settings(kernel_type, model, given, ready, seed)
    if "draws" in checks:
        ends = []
        for backend in backends:
            kernel = ready(kernel_type(model, **{**given, "backend": backend}))
            state = torch.get_rng_state()
            end = _check_steps(kernel, backend, num_chains, steps, seed)
            _check_chains(kernel, end, tolerance)
            assert torch.equal(state, torch.get_rng_state()), (
                f"on {backend!r}, draws take numbers from PyTorch's own generator"
            )
            ends.append(end.position)
            what = f"draws on {backends[0]!r} and {backend!r}"
            _compare(what, ends[-1], ends[0], tolerance)
    if "drivers" in checks:
        _check_drivers(kernel_type(model, **given), args, kwargs, seed, tolerance)


def _check_steps(
    kernel: VectorizedKernel, backend: str, num_chains: int, steps: Sequence[int], seed: int
) -> Chains:
    """Draws of one call against those of calls from step to step, with all that a draw carries."""
    start = kernel.begin(range(num_chains), seed)
    end, draws = kernel.record(start, steps)
    statistics = kernel.statistics(draws)
    chains = start
    for row, step in enumerate(steps):
        chains = kernel.advance(pickle.loads(pickle.dumps(chains)), step - chains.step)
        recorded = {
            **{name: value[row] for name, value in draws.state._asdict().items()},
            "potential_energy": draws.potential_energy[row],
            **{f"statistic {name}": value[row] for name, value in statistics.items()},
        }
        expected = {
            **_leaves(chains.state),
            "potential_energy": chains.potential_energy,
            **{f"statistic {name}": value for name, value in kernel.statistics(chains).items()},
        }
        for name, value in recorded.items():
            what = f"on {backend!r}, {name} of a run that stopped on the way to step {step}"
            _compare(what, expected[name], value, 0.0)
    for name, value in kernel.statistics(end).items():
        assert value.shape == (num_chains,), f"shape of statistic {name}: {tuple(value.shape)}"
    assert end.step == steps[-1] == draws.steps[-1], f"{end.step} steps taken, not {steps[-1]}"
    _compare("the chains after the last draw", end.position, chains.position, 0.0)
    return end


def _leaves(state: Any) -> dict[str, Tensor]:
    """Tensors of nested named tuples, by their names there."""
    leaves: dict[str, Tensor] = {}
    for name, value in state._asdict().items():
        leaves |= {name: value} if isinstance(value, Tensor) else _leaves(value)
    return leaves


def _check_chains(kernel: VectorizedKernel, end: Chains, tolerance: float) -> None:
    """Check that a chain depends on its number, seed and start, and not on other chains."""
    numbers, seed, step = end.numbers, end.seed, end.step

    def after(chains: Chains) -> Tensor:
        return kernel.advance(chains, step).position

    start = kernel.begin(numbers, seed)
    _compare("two runs of one seed", after(start), end.position, 0.0)
    for number in numbers:
        alone = after(kernel.begin([number], seed))[0]
        what = f"chain {number} alone and among others"
        _compare(what, alone, end.position[number], tolerance)

    together = kernel.potential.layout.unflatten(start.position[:1].expand_as(start.position))
    ours = after(kernel.begin(numbers, seed, together))
    assert not torch.equal(ours[0], ours[1]), "chains 0 and 1 draw the same from one start"
    other = after(kernel.begin(numbers, seed + 1, together))
    assert not torch.equal(ours, other), f"seeds {seed} and {seed + 1} draw the same from one start"

    broken = start.position.clone()
    broken[-1] = math.nan
    diverged = after(replace(start, state=start.state._replace(position=broken)))
    _compare("chains beside one that is NaN", diverged[:-1], end.position[:-1], 0.0)


def _check_settings(
    kernel_type: KernelType,
    model: Callable[..., Any],
    options: Options,
    ready: Callable[[VectorizedKernel], VectorizedKernel],
    seed: int,
) -> None:
    given = {"steps_per_sample": 3, "init_strategy": init_to_sample, **options}
    if "temperature" in kernel_type(model, **options).settings():
        given["temperature"] = 0.5
    kernel = kernel_type(model, **given)
    settings = kernel.settings()
    wrong = {k: (settings.get(k), v) for k, v in given.items() if settings.get(k, ...) != v}
    assert not wrong, f"settings that are not the arguments, as (setting, argument): {wrong}"
    more = sorted({"model", "potential_fn", "options"} & set(settings))
    assert not more, f"settings should not hold {more}"
    again = kernel_type(model, **settings).settings()
    assert again == settings, f"a kernel made of the settings {settings} has others: {again}"

    other = kernel.replace(steps_per_sample=5)
    assert type(other) is type(kernel) and other.model is model, "replace changes type or model"
    expected = {**settings, "steps_per_sample": 5}
    assert other.settings() == expected, f"replace gives {other.settings()}, not {expected}"
    assert kernel.settings() == settings, "replace changes the kernel itself"
    try:
        kernel.replace(no_such_setting=1.0)
    except TypeError as error:
        assert "no_such_setting" in str(error), f"replace does not name a wrong setting: {error}"
    else:
        raise AssertionError("replace takes a setting that does not exist")

    def positions(kernel: VectorizedKernel) -> Tensor:
        return kernel.advance(ready(kernel).begin(range(2), seed), 6).position

    before = cloudpickle.dumps(kernel)
    drawn = positions(kernel)
    for moment, pickled in (("before", before), ("after", cloudpickle.dumps(kernel))):
        copy = pickle.loads(pickled)
        what = f"a kernel pickled {moment} use"
        assert copy._potential is None and copy._loop is None, f"{what} carries its potential"
        identity = kernel_identity(copy), kernel_identity(kernel)
        assert identity[0] == identity[1], f"{what} is {identity[0]}, not {identity[1]}"
        _compare(f"draws of {what} and of itself", positions(copy), drawn, 0.0)
    kernel.advance(kernel.begin(range(2), seed), 1)  # pickling took nothing from it


def _check_arguments(
    kernel_type: KernelType, model: Callable[..., Any], given: dict[str, Any]
) -> None:
    known = kernel_type(model, **given).settings()
    cases: list[tuple[str, Any, dict[str, Any]]] = [
        ("model", None, given),
        ("model", "text", given),
        ("potential_fn", model, {**given, "potential_fn": len}),
        ("potential_fn", None, {**given, "potential_fn": 3.0}),
        *((name, model, {**given, name: value}) for name, value in _BAD_ARGUMENTS if name in known),
    ]
    failures = []
    for name, first, keywords in cases:
        what = f"{name}={keywords[name]!r}" if name in keywords else f"model={first!r}"
        try:
            kernel_type(first, **keywords)
        except (TypeError, ValueError) as error:
            if name not in str(error):
                failures.append(f"{what}: the error does not name it: {error}")
        else:
            failures.append(f"{what}: taken without an error")
    assert not failures, "wrong arguments:\n" + "\n".join(failures)


def _check_drivers(
    kernel: VectorizedKernel, args: tuple[Any, ...], kwargs: Options, seed: int, tolerance: float
) -> None:
    theirs = pyro.infer.MCMC(kernel.replace(steps_per_sample=3), 6, 2, disable_progbar=True)
    with torch.random.fork_rng():
        theirs.run(*args, **kwargs)
    sites = theirs.kernel.transforms
    for name, value in theirs.get_samples().items():
        assert len(value) == 6, f"Pyro's driver has {len(value)} draws of {name!r}, not 6"
        assert len(value.unique(dim=0)) == 6, f"Pyro's driver repeats draws of {name!r}"
        inside = sites[name].domain.check(value)
        assert bool(inside.all()), f"Pyro's driver draws {name!r} outside of its support: {value}"
        assert name in theirs.diagnostics(), f"Pyro's driver has no diagnostics of {name!r}"

    def ours(seed: int | None, **settings: Any) -> dict[str, Tensor]:
        mcmc = MCMC(kernel, 4, 3, 3, 2, seed=seed, progress=False, **settings)
        return mcmc.run(*args, **kwargs).get_samples(group_by_chain=True)

    together, one_by_one = ours(seed), ours(seed, chain_method="sequential")
    unseeded = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            unseeded.append(ours(None))
    for name, value in together.items():
        assert value.shape[:2] == (3, 4), f"{name!r} has the shape {tuple(value.shape)}"
        what = f"{name!r} of chains together and one by one"
        _compare(what, one_by_one[name], value, tolerance)
        what = f"{name!r} after torch.manual_seed"
        _compare(what, unseeded[1][name], unseeded[0][name], 0.0)


def check_segments(
    kernel: MCMCKernel,
    *args: Any,
    warmup_steps: int = 3,
    num_samples: int = 3,
    num_chains: int = 2,
    seed: int = 0,
    **kwargs: Any,
) -> None:
    """Check that a run can stop and continue after any step.

    The whole state of a chain is written to a file and read back after each step. Draws and
    statistics must then equal those of a run without files, to the last bit.

    :param MCMCKernel kernel: any kernel that supports checkpoints.
    :param args: positional arguments of the model.
    :param int warmup_steps: as in :class:`~pyro_ext.inference.MCMC`.
    :param int num_samples: as in :class:`~pyro_ext.inference.MCMC`.
    :param int num_chains: as in :class:`~pyro_ext.inference.MCMC`.
    :param int seed: as in :class:`~pyro_ext.inference.MCMC`.
    :param kwargs: keyword arguments of the model.
    :raises AssertionError: if they differ.

    Example::

        >>> from pyro_ext.inference import SGLD
        >>> def model():
        ...     pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> check_segments(SGLD(model, step_size=0.1))
    """
    mcmc = MCMC(kernel, num_samples, warmup_steps, num_chains, seed=seed, progress=False)
    mcmc.run(*args, **kwargs)
    expected = mcmc.get_samples(group_by_chain=True), mcmc.sample_statistics()
    runner = mcmc._make_runner(seed)
    chunks: dict[range, list[Chunk]] = {}
    with TemporaryDirectory() as folder:
        path = Path(folder, "state")
        for members in mcmc._groups:
            state = GroupState.new(members)
            while not state.is_done(num_samples):
                segment = runner.segment(state, num_samples, 0.0, silent)
                if segment.error is not None:
                    raise segment.error
                write_tensors(path, *runner.save(segment.state))
                tensors, content, _ = read_tensors(path)
                state = replace(segment.state, sampler=runner.load(members, tensors, content))
                if segment.chunk is not None:
                    chunks.setdefault(members, []).append(segment.chunk)
    groups = [(members, partial(iter, parts)) for members, parts in chunks.items()]
    found = gather_chains(groups, range(num_chains), num_samples)
    for kind, ours, theirs in zip(("draws", "statistic"), found, expected, strict=True):
        assert set(ours) == set(theirs), f"{kind} of {sorted(ours)}, not of {sorted(theirs)}"
        for name, value in ours.items():
            what = f"{kind} {name!r} of a run that goes through a file after each step differs"
            torch.testing.assert_close(
                value, theirs[name], rtol=0.0, atol=0.0, equal_nan=True, msg=what
            )


def check_gaussian(
    kernel_type: KernelType,
    *,
    options: Options | None = None,
    variance: float = 1.0,
    bias: float = 0.0,
    num_chains: int = 400,
    num_steps: int = 400,
    seed: int = 0,
    allowed: float = 4.0,
) -> None:
    """Check the stationary mean and variance of a kernel on standard normal targets.

    Chains are independent and start in equilibrium. They are evaluated once, after the last step.

    :param kernel_type: as in :func:`check_kernel`.
    :param options: as in :func:`check_kernel`.
    :param float variance: exact variance of the discretized chain on a standard normal target.
    :param float bias: allowed error of the variance, in addition to chance.
    :param int num_chains: number of chains, with ten independent elements each.
    :param int num_steps: number of steps, enough to forget the start.
    :param int seed: seed of the chains.
    :param float allowed: allowed error of mean and variance, in standard errors.
    :raises AssertionError: if an error is larger.

    Example::

        >>> from pyro_ext.inference import SGLD
        >>> check_gaussian(SGLD, options={"step_size": 0.2}, variance=1 / 0.9)
    """
    kernel = kernel_type(potential_fn=lambda z: 0.5 * z["x"].square().sum(), **(options or {}))
    kernel.initial_params = {"x": torch.zeros(10)}
    kernel.setup(0)
    generator = torch.Generator().manual_seed(seed)
    start = variance**0.5 * torch.randn(num_chains, 10, generator=generator)
    chains = kernel.advance(kernel.begin(range(num_chains), seed, {"x": start}), num_steps)
    position = chains.position.double()
    mean, found = float(position.mean()), float(position.square().mean())
    error = (variance / position.numel()) ** 0.5
    assert abs(mean) <= allowed * error, (
        f"the mean is {mean:.4g}, {abs(mean) / error:.1f} standard errors from zero"
    )
    error = variance * (2.0 / position.numel()) ** 0.5
    assert abs(found - variance) <= bias + allowed * error, (
        f"the variance is {found:.4g}, not {variance:.4g}: off by {abs(found - variance):.3g}, "
        f"with a standard error of {error:.2g} and an allowed bias of {bias:g}"
    )
