"""Every public callable with a seed: it decides what is drawn, and leaves the generators alone."""

import copy
import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.bad_input.test_every_argument import SLOW, TABLES, function_of
from tests.bad_input.walk import Call

# What another seed does not change in its valid call, where little or nothing is drawn.
ALIKE = (
    "AmortizedClusterer.cluster",
    "AutoPseudocoreset.fit",
    "CNP.predict",
    "CNP.posterior_predictive",
    "MaskedAutoencoder.reconstruct",
    "SMCResult.sample",
    "SoftEMLP.fit",
    "StructuralAttack.perturb",
    "TSpear.perturb",
    "TwistedSMC.fit",
    "bpda_eot",
    "check_axis_equivariance",
    "digit_pipeline",
    "digit_transformer_pipeline",
    "hutchinson_trace",
    "joint_score_attack",
    "learned_soup",
    "log_likelihoods",
    "point_estimate",
    "tune",
)
MOVES = ("AsymmetricNetwork",)  # its layers start as PyTorch's do before they get their weights


def drawn(value: Any) -> Iterator[Tensor]:
    """Numbers in what a call returned, in order."""
    if isinstance(value, Tensor | np.ndarray | np.number | bool | int | float):
        yield torch.as_tensor(value).detach()
    elif isinstance(value, nn.Module):
        yield from drawn(value.state_dict())
    elif isinstance(value, Mapping):
        yield from drawn(list(value.values()))
    elif isinstance(value, list | tuple | Iterator):
        for part in value:
            yield from drawn(part)
    elif hasattr(value, "__dict__") and not inspect.isroutine(value) and not inspect.isclass(value):
        parts = (Tensor, list, tuple, Mapping)
        yield from drawn([one for one in vars(value).values() if isinstance(one, parts)])


def are_equal(first: list[Tensor], second: list[Tensor]) -> bool:
    pairs = zip(first, second, strict=False)
    return len(first) == len(second) and all(
        one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
        for one, other in pairs
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in TABLES]
)
def test_seeds_decide_and_generators_go_on(name, subtests, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)  # of networks in the table, some of which give all inputs the same score
    module = importlib.import_module(name.split(" ")[0])

    def run(entry: str, valid: Call, seed: int | None) -> list[Tensor]:
        own = Call(*copy.deepcopy((valid.arguments, valid.star, valid.instance)))  # it may change
        return list(drawn(own.run(function_of(module, entry, own), {"seed": seed})))

    for entry, valid in TABLES[name]().items():
        function, last = function_of(module, entry, valid), entry.split(" ")[0]
        if "seed" not in inspect.signature(function).parameters or last == "seeded":
            continue
        with subtests.test(entry):
            before = torch.get_rng_state(), np.random.get_state()[1].tolist()
            first = run(entry, valid, 0)
            assert last in MOVES or torch.equal(before[0], torch.get_rng_state())
            assert before[1] == np.random.get_state()[1].tolist()
            torch.rand(3)
            assert are_equal(first, run(entry, valid, 0))
            if inspect.signature(function).parameters["seed"].default is None:
                torch.manual_seed(5)
                second = run(entry, valid, None)
                torch.manual_seed(5)
                assert are_equal(second, run(entry, valid, None))
            if first and not inspect.isclass(function) and last not in ALIKE:
                assert not are_equal(first, run(entry, valid, 1))
