"""Simulated data sets and the ranks of true values, here or on other processes and machines."""

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyro
import torch
from pyro.params.param_store import StateDict
from pyro.util import get_rng_state, set_rng_seed, set_rng_state
from torch import Tensor

from pyro_ext._lib.executors import run_tasks
from pyro_ext._lib.progress import progress_bar
from pyro_ext.checkpoint.folder import SimulationFolder
from pyro_ext.diagnostics._model_groups import check_shapes
from pyro_ext.handlers import replace_observations
from pyro_ext.posterior.draws import context_of, draws_of, to_array
from pyro_ext.posterior.fixed_points import model_at
from pyro_ext.posterior.identity import (
    data_identity,
    density_identity,
    function_identity,
    model_identity,
    versions,
)
from pyro_ext.potential import Potential

LOG_LIKELIHOOD, DISTANCE = "log_likelihood", "distance"
_STREAM_OF_REFERENCES = 1

Quantity: TypeAlias = Callable[[dict[str, Tensor]], Any]
Ranks: TypeAlias = dict[str, npt.NDArray[np.int64]]

_SECONDS_PER_FILE = 2.0
_FAILED = "executor={} failed; with checkpoint=... the same program goes on from what it had done"


@dataclass(frozen=True)
class Experiment:
    """Setup of all simulations: arguments of ``sbc``, and Pyro's and PyTorch's global state."""

    model: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    run_inference: Callable[..., Any]
    quantities: Mapping[str, Quantity]
    log_likelihood: bool
    distance: bool
    num_draws: int
    seed: int
    params: StateDict
    dtype: torch.dtype

    def potential(self) -> Potential:
        """Potential of the model, which runs a few times only."""
        return Potential(self.model, *self.args, backend="eager", **self.kwargs)

    def identity(self, potential: Potential) -> dict[str, Any]:
        """Describe the simulations, so that no others continue them."""
        densities, _ = density_identity(model_at(self.model, self.args, self.kwargs), {})
        data = data_identity(list(self.args), "args") | data_identity(dict(self.kwargs), "kwargs")
        return {
            "driver": "sbc",
            "versions": versions(),
            "run": {"num_draws": self.num_draws, "seed": self.seed},
            "model": model_identity(self.model, potential) | {"log density": densities},
            "data": data | data_identity(dict(self.params["params"]), "params"),
            "inference": function_identity(self.run_inference),
            "quantities": {name: function_identity(q) for name, q in self.quantities.items()}
            | ({LOG_LIKELIHOOD: {}} if self.log_likelihood else {})
            | ({DISTANCE: {}} if self.distance else {}),
        }

    def simulate(self, number: int, potential: Potential) -> Ranks:
        """Draw true values and data from the prior, infer, and rank the true values."""
        words = np.random.SeedSequence(self.seed, spawn_key=(number,)).generate_state(4)
        inference_seed, prior_seed, guide_seed, tie_seed = map(int, words)
        with self.surroundings(inference_seed):
            drawn = {name: value[0] for name, value in potential.prior(1, prior_seed).items()}
            truth = {name: drawn[name] for name in potential.sites}
            # In the type of what was observed: Pyro draws counts as floating numbers.
            data = {
                name: drawn[name] if site.dtype.is_floating_point else drawn[name].to(site.dtype)
                for name, site in potential.observed_sites.items()
            }
            model = replace_observations(self.model, data)
            posterior = self.run_inference(model, *self.args, **self.kwargs)
            if getattr(posterior, "interrupted", False):
                raise KeyboardInterrupt
            informed = Potential(model, *self.args, backend="eager", **self.kwargs)
            values = self._values(posterior, informed, truth, guide_seed)
            if self.distance:
                key = (number, _STREAM_OF_REFERENCES)
                words = np.random.SeedSequence(self.seed, spawn_key=key).generate_state(1)
                reference = potential.prior(1, int(words[0]))
                distances = {DISTANCE: _distances(values, reference)}
            else:
                distances = {}
            values |= self._quantities(values, informed, data) | distances
        generator = np.random.default_rng(tie_seed)
        return {name: _rank(name, to_array(rows, name), generator) for name, rows in values.items()}

    def surroundings(self, seed: int = 0) -> AbstractContextManager[None]:
        """Global state in which the model and the inference run."""
        return _surroundings(seed, self.params, self.dtype)

    def _values(
        self, posterior: Any, potential: Potential, truth: Mapping[str, Tensor], seed: int
    ) -> dict[str, Tensor]:
        """True values and, below them, draws. **Shape:** ``(1 + num_draws, *event)`` each."""
        by_chain = False
        if isinstance(posterior, Mapping):
            name = next(iter(truth))
            by_chain = name in posterior and np.ndim(posterior[name]) == truth[name].dim() + 2
        context = context_of(posterior, potential, ())
        arrays = draws_of(posterior, context, potential, self.num_draws, by_chain, seed)
        if missing := [name for name in truth if name not in arrays]:
            raise ValueError(f"run_inference returned no draws of the latent sites {missing}")
        check_shapes(arrays, potential.sites, "run_inference(...)")
        values = {}
        for name, true in truth.items():
            draws = arrays[name].reshape(-1, *true.shape)
            if len(draws) < self.num_draws:
                raise ValueError(
                    f"run_inference returned {len(draws)} draws, wanted at least num_draws = "
                    f"{self.num_draws}"
                )
            # The last of equally long stretches, so that neighbors lie far apart.
            kept = np.arange(1, self.num_draws + 1) * len(draws) // self.num_draws - 1
            rows = torch.as_tensor(draws[kept], dtype=true.dtype, device=true.device)
            values[name] = torch.cat([true[None], rows])
        return values

    def _quantities(
        self, values: Mapping[str, Tensor], potential: Potential, data: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Quantities at the true values and, below, at the draws."""
        result: dict[str, Tensor] = {}
        if self.log_likelihood:
            terms = potential.log_likelihood(values).values()
            sums = [term.reshape(len(term), -1).sum(1) for term in terms]
            result[LOG_LIKELIHOOD] = torch.stack(sums).sum(0)
        if self.quantities:
            rows = {**values, **potential.deterministic(values)}
            for name, quantity in self.quantities.items():
                outcomes = [
                    torch.as_tensor(quantity({k: v[row] for k, v in rows.items()} | dict(data)))
                    for row in range(self.num_draws + 1)
                ]
                result[name] = torch.stack(outcomes).detach()
        return result


def _distances(values: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Tensor:
    """Distances of true values and draws from a point, each element in units of its spread.

    Spreads are over the true values and draws alike, so that these can be exchanged.
    """
    total = torch.zeros(())
    for name, rows in values.items():
        apart = (rows - reference[name]).double().flatten(1)
        spread = rows.double().flatten(1).std(0)
        total = total + (apart / torch.where(spread > 0, spread, 1.0)).square().sum(1)
    return total


class Simulator:
    """Runs simulations, in this process or in a worker to which it was sent."""

    def __init__(self, experiment: Experiment, potential: Potential | None = None) -> None:
        self._experiment = experiment
        self._potential = potential

    def setup(self) -> None:
        """Prepare to run in this process."""
        with self._experiment.surroundings():
            self._potential = self._experiment.potential()

    def run(self, number: int) -> Ranks | str:
        """Ranks of a simulation, or the traceback of its error; not every error can be sent."""
        assert self._potential is not None
        try:
            return self._experiment.simulate(number, self._potential)
        except Exception:
            return traceback.format_exc()


def run_simulations(
    experiment: Experiment,
    potential: Potential,
    num_simulations: int,
    executor: Executor | None,
    folder: SimulationFolder | None,
    progress: bool,
) -> tuple[dict[int, Ranks | str], bool]:
    """Run simulations, one after the other or on an executor, but those that a folder has."""
    outcomes = {} if folder is None else _read(folder, num_simulations)
    numbers = [number for number in range(num_simulations) if number not in outcomes]
    unwritten: dict[int, Ranks | str] = {}
    written = time.monotonic()

    def write() -> None:
        nonlocal written
        if folder is not None and unwritten:
            folder.append({number: _tensors(outcome) for number, outcome in unwritten.items()})
        unwritten.clear()
        written = time.monotonic()

    def take(number: int, outcome: Ranks | str) -> None:
        outcomes[number] = unwritten[number] = outcome
        bar.update()
        if time.monotonic() - written > _SECONDS_PER_FILE:
            write()

    def arguments_of(number: int) -> tuple[int] | None:
        return None if number in outcomes else (number,)

    interrupted = False
    with progress_bar(
        total=num_simulations, initial=len(outcomes), desc="SBC", unit="run", disable=not progress
    ) as bar:
        try:
            if executor is None:
                simulator = Simulator(experiment, potential)
                for number in numbers:
                    take(number, simulator.run(number))
            else:
                work, failed = Simulator(experiment), _FAILED.format(executor)
                interrupted = run_tasks(executor, work, numbers, arguments_of, take, failed)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            write()
    return outcomes, interrupted


def _read(folder: SimulationFolder, num_simulations: int) -> dict[int, Ranks | str]:
    """Outcomes that an earlier run has left."""
    return {
        number: found if isinstance(found, str) else {k: v.numpy() for k, v in found.items()}
        for number, found in folder.open().items()
        if number < num_simulations
    }


def _tensors(outcome: Ranks | str) -> dict[str, Tensor] | str:
    if isinstance(outcome, str):
        return outcome
    return {name: torch.from_numpy(ranks) for name, ranks in outcome.items()}


@contextmanager
def _surroundings(seed: int, params: StateDict, dtype: torch.dtype) -> Iterator[None]:
    """Global state that depends on nothing that ran before, and what there was put back after."""
    state, own_dtype = get_rng_state(), torch.get_default_dtype()
    num_threads = torch.get_num_threads()
    try:
        # As many workers as there are cores leave no core to spare, and the order of a sum, which
        # depends on the number of threads, should not depend on where the simulation runs.
        torch.set_num_threads(1)
        torch.set_default_dtype(dtype)
        set_rng_seed(seed)
        with pyro.get_param_store().scope(_copied(params)):
            yield
    finally:
        torch.set_num_threads(num_threads)
        torch.set_default_dtype(own_dtype)
        set_rng_state(state)


def _copied(params: StateDict) -> StateDict:
    """State of a parameter store, which inference may change without changing the original."""
    return {
        "params": {
            name: value.detach().clone().requires_grad_()
            for name, value in params["params"].items()
        },
        "constraints": dict(params["constraints"]),
    }


def _rank(
    name: str, values: npt.NDArray[Any], generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Rank of the first row among the others, with ties broken at random."""
    if np.isnan(values).any():
        raise ValueError(f"{name!r} has values that are not numbers")
    true, draws = values[0], values[1:]
    below, ties = (draws < true).sum(0), (draws == true).sum(0)
    return np.asarray(below + generator.integers(0, ties, endpoint=True), dtype=np.int64)
