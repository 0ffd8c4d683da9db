"""Old names of what has been renamed still work, and say so."""

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from packaging.version import Version

from pyro_ext import __version__, random_measures, special
from pyro_ext._renamed import (
    REMOVED_IN,
    RenamedKeys,
    renamed,
    renamed_arguments,
    renamed_attribute,
)
from pyro_ext.distributions import GaussianCluster
from pyro_ext.inference import IndependenceMetropolis, TreeGuided, pseudocoresets
from pyro_ext.inference.martingale import NPTL
from pyro_ext.models.neural_processes import ImageTasks
from pyro_ext.models.nonparametric import (
    FrequencyModel,
    HeldOutPairs,
    SimpleGraph,
    pitman_yor_prior,
    spectral_memberships,
)
from pyro_ext.models.wide_networks import (
    DependentWeightNetwork,
    equal_variances,
    horseshoe_variances,
    tangent_kernel,
)
from pyro_ext.nn import asymmetric_variances
from pyro_ext.random_measures import (
    BetaPrimeProcess,
    DirichletProcess,
    FrequencyCounts,
    GeneralizedGammaProcess,
    RandomPartition,
    log_joint_given_cluster_tilts,
)
from pyro_ext.testing.random_measures import check_partitions


def test_old_names_are_gone_when_they_should_be() -> None:
    assert Version(__version__) < Version(REMOVED_IN)


def test_module_gives_renamed_names() -> None:
    module = types.ModuleType("of_this_test")
    module.new = 1  # type: ignore[attr-defined]
    module.__getattr__ = renamed("of_this_test", {"old": "new", "moved": "math.pi"})  # type: ignore[method-assign]
    sys.modules["of_this_test"] = module
    try:
        with pytest.warns(FutureWarning, match="of_this_test.old is called of_this_test.new"):
            assert module.old == 1
        with pytest.warns(FutureWarning, match="is called math.pi"):
            assert module.moved > 3
        with pytest.raises(AttributeError, match="has no attribute 'other'"):
            _ = module.other
    finally:
        del sys.modules["of_this_test"]


def test_names_of_another_getattr_go_on() -> None:
    assert renamed("math", {}, otherwise=str.upper)("pi") == "PI"


def test_function_takes_renamed_arguments() -> None:
    @renamed_arguments(share="fraction")
    def function(number: int, *, fraction: float = 0.5) -> float:
        """Tell what it is."""
        return number * fraction

    with pytest.warns(FutureWarning, match="share is called fraction now"):
        assert function(2, share=0.25) == 0.5  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="share is the old name of fraction"):
        function(2, share=0.25, fraction=0.5)  # type: ignore[call-arg]
    assert function(2) == 1.0
    assert function.__doc__ == "Tell what it is."


def test_class_has_renamed_attributes() -> None:
    class Thing:
        new = 1
        old = renamed_attribute("old", "new")

        def predictive(self, number: int) -> int:
            return number

        law = renamed_attribute("law", "predictive")

    with pytest.warns(FutureWarning, match="old is called new now"):
        assert Thing().old == 1
    with pytest.warns(FutureWarning, match="law is called predictive now"):
        assert Thing().law(3) == 3


def test_dict_gives_renamed_keys() -> None:
    found = RenamedKeys({"fraction": 0.5}, share="fraction")
    with pytest.warns(FutureWarning, match="'share' is called 'fraction' now"):
        assert found["share"] == 0.5
    with pytest.raises(KeyError, match="other"):
        _ = found["other"]


def old_places() -> object:
    return ImageTasks(torch.rand(3, 4, 4), num_context=(2, 2)).places


def old_share() -> object:
    return HeldOutPairs(0.2, seed=0).share


def old_law() -> object:
    return FrequencyModel(pitman_yor_prior()).law()


def old_symmetric_share() -> object:
    return asymmetric_variances(torch.ones(3), symmetric_share=0.5)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (old_places, "places is called positions now"),
        (old_share, "share is called probability now"),
        (old_law, "law is called process now"),
        (old_symmetric_share, "symmetric_share is called symmetric_fraction now"),
    ],
)
def test_old_names_of_models_and_networks(call: Callable[[], object], message: str) -> None:
    with pytest.warns(FutureWarning, match=message):
        assert call() is not None


def normalized() -> Any:
    return GeneralizedGammaProcess(2.0, 0.4, 1.5).normalize()


def old_joint_given_cluster_tilts() -> object:
    return log_joint_given_cluster_tilts(  # type: ignore[call-arg]
        BetaPrimeProcess(1.5, 0.4, 2.3),
        [2, 1],
        tilt=torch.tensor(0.7),
        cluster_tilts=torch.tensor([0.4, 1.0]),
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_measures.JumpLaw, "JumpLaw is called .*JumpDistribution now"),
        (lambda: random_measures.cluster_tilt_law, "is called .*cluster_tilt_distribution now"),
        (lambda: special.places_of_fall, "is called .*points_of_fall now"),
        (lambda: special.place_with_gradient, "is called .*point_with_gradient now"),
        (lambda: normalized().log_joint([2, 1], tilt=0.5), "tilt is called auxiliary now"),
        (lambda: normalized().predictive([2, 1], tilt=0.5), "tilt is called auxiliary now"),
        (lambda: normalized().posterior_jumps([2, 1], tilt=0.5), "tilt is called auxiliary now"),
        (lambda: normalized().posterior_measure(tilt=0.5), "tilt is called auxiliary now"),
        (lambda: normalized().sample_tilt([2, 1]), "sample_tilt is called sample_auxiliary now"),
        (old_joint_given_cluster_tilts, "tilt is called auxiliary now"),
        (
            lambda: RandomPartition(law=DirichletProcess(1.0), num_samples=3),
            "law is called measure",
        ),
        (lambda: DirichletProcess(1.0).partition(3).law, "law is called measure now"),
        (
            lambda: FrequencyCounts(law=DirichletProcess(1.0), num_samples=3),
            "law is called measure",
        ),
        (lambda: equal_variances().law(4), "law is called distribution now"),
        (
            lambda: DependentWeightNetwork(4, [5], 3, horseshoe_variances()).variance_laws,
            "variance_laws is called variance_distributions now",
        ),
        (
            lambda: tangent_kernel(1, torch.ones(2), symmetric_share=0.5),
            "symmetric_share is called symmetric_fraction now",
        ),
    ],
)
def test_old_names_of_random_measures_and_wide_networks(
    call: Callable[[], object], message: str
) -> None:
    with pytest.warns(FutureWarning, match=message):
        assert call() is not None


def tree_guided(**arguments: Any) -> Any:
    return TreeGuided(
        DirichletProcess(1.0), GaussianCluster.from_data(torch.randn(9, 2)), **arguments
    )


def old_validation_share() -> object:
    return NPTL(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3)).validation_share


def old_share_of_memberships() -> object:
    edges = torch.tensor([[0, 1], [1, 2], [0, 2], [3, 4], [4, 5], [3, 5]])
    graph = SimpleGraph(6, edges)
    return spectral_memberships(graph, 2, share=0.8)  # type: ignore[call-arg]


def old_law_of_partitions() -> object:
    check_partitions(law=DirichletProcess(torch.tensor(1.0).double()), num_samples=2)  # type: ignore[call-arg]
    return "checked"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tree_guided().local_share, "local_share is called local_fraction now"),
        (lambda: IndependenceMetropolis(print).local_share, "is called local_fraction now"),
        (old_validation_share, "validation_share is called validation_fraction now"),
        (old_share_of_memberships, "share is called proportion now"),
        (lambda: pseudocoresets.ParameterLaws, "is called .*ParameterDistributions now"),
        (lambda: pseudocoresets.parameter_laws, "is called .*parameter_distributions now"),
        (old_law_of_partitions, "law is called measure now"),
    ],
)
def test_old_names_of_inference_and_checks(call: Callable[[], object], message: str) -> None:
    with pytest.warns(FutureWarning, match=message):
        assert call() is not None


@pytest.mark.parametrize("argument", ["depth", "local"])
def test_arguments_of_the_published_kernel(argument: str) -> None:
    with pytest.raises(
        TypeError, match=f"^{argument} is an argument of PublishedTreeGuided of .* 3"
    ):
        tree_guided(**{argument: 3})
