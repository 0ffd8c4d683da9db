"""Metrics of ensembles: equivalent sizes, temperatures and mutual information."""

import math

import pytest
import torch
from scipy.optimize import minimize
from torch.distributions import Categorical

from pyro_ext.diagnostics.metrics import (
    TemperatureScaling,
    deep_ensemble_equivalent,
    ensemble_mutual_information,
    nll,
    temperature_scale,
)

REFERENCE = [0.287342, 0.227350, 0.210653, 0.202192, 0.196635, 0.193885, 0.189541]


class TestDeepEnsembleEquivalent:
    @pytest.mark.parametrize(
        ("value", "size"), [(0.30, 0.789), (0.25, 1.6224), (0.2, 4.3945), (0.18, 9.1964)]
    )
    def test_values_of_the_papers_reference(self, value, size):
        assert deep_ensemble_equivalent(value, REFERENCE) == pytest.approx(size, abs=5e-4)
        as_scalar = torch.tensor(value, dtype=torch.float64)
        assert deep_ensemble_equivalent(as_scalar, REFERENCE) == pytest.approx(size, abs=5e-4)

    @pytest.mark.parametrize("reference", [[0.2], [0.2, 0.2], [0.1, 0.2], [0.3, 0.2, 0.25]])
    def test_a_reference_has_to_fall(self, reference):
        with pytest.raises(ValueError, match="reference must contain .* at least two, strictly"):
            deep_ensemble_equivalent(0.2, reference)


class TestTemperatureScale:
    @pytest.mark.statistical
    def test_calibrated_predictions_keep_their_temperature(self):
        # 200,000 labels from the predictions: the estimate's standard error is .0026 by the Fisher
        # information, so correct code is outside of .02 with a probability below 1e-10.
        generator = torch.Generator().manual_seed(0)
        logits = 2.0 * torch.randn(200_000, 10, dtype=torch.float64, generator=generator)
        labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        assert temperature_scale(logits.softmax(-1), labels).temperature == pytest.approx(
            1, abs=0.02
        )
        overconfident = (3.0 * logits).softmax(-1)
        assert float(temperature_scale(overconfident, labels)) == pytest.approx(3, abs=0.06)

    def test_it_is_the_minimum(self):
        generator = torch.Generator().manual_seed(1)
        draws = torch.randn(3, 200, 4, dtype=torch.float64, generator=generator).softmax(-1)
        labels = torch.multinomial(draws.mean(0), 1, generator=generator)[:, 0]
        scaling = temperature_scale(draws, labels)
        found = minimize(
            lambda t: nll(TemperatureScaling(float(t[0]))(draws), labels),
            [1.0],
            method="Nelder-Mead",
            options={"xatol": 1e-7, "fatol": 1e-12},
        )
        assert nll(scaling(draws), labels) == pytest.approx(found.fun, abs=1e-9)
        assert scaling.temperature == pytest.approx(found.x[0], rel=1e-3)

    def test_scaling_is_that_of_logits(self):
        logits = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
        found = TemperatureScaling(2.5)(logits.softmax(-1))
        torch.testing.assert_close(found, (logits / 2.5).softmax(-1))
        torch.testing.assert_close(TemperatureScaling(1.0)(found), found)

    def test_zeros_stay_zeros(self):
        probabilities = torch.tensor([[0.0, 0.25, 0.75], [0.0, 0.25, 0.75]])
        scaling = temperature_scale(probabilities, torch.tensor([1, 2]))
        found = scaling(probabilities)
        torch.testing.assert_close(
            found[0], torch.tensor([0.0, 0.5, 0.5]).double(), atol=0.01, rtol=0
        )
        with pytest.raises(
            ValueError, match=r"probabilities must be positive for every label, got 0"
        ):
            temperature_scale(probabilities, torch.tensor([0, 2]))

    def test_what_is_all_right_gets_as_confident_as_may_be(self):
        probabilities = torch.tensor([[0.4, 0.6], [0.7, 0.3]])
        scaling = temperature_scale(probabilities, torch.tensor([1, 0]))
        assert 0.01 <= scaling.temperature < 0.05
        assert nll(scaling(probabilities), torch.tensor([1, 0])) < 1e-4


class TestMutualInformation:
    def test_of_one_network_is_zero(self):
        generator = torch.Generator().manual_seed(0)
        probabilities = torch.randn(1, 20, 5, generator=generator).softmax(-1)
        assert ensemble_mutual_information(probabilities) == 0.0
        assert ensemble_mutual_information(probabilities.expand(4, -1, -1)) == pytest.approx(
            0, abs=1e-7
        )

    def test_is_the_difference_of_entropies(self):
        generator = torch.Generator().manual_seed(0)
        draws = torch.randn(4, 30, 5, dtype=torch.float64, generator=generator).softmax(-1)
        expected = Categorical(draws.mean(0)).entropy() - Categorical(draws).entropy().mean(0)
        assert ensemble_mutual_information(draws) == pytest.approx(
            float(expected.mean()), rel=1e-12
        )

    def test_of_certain_networks_is_the_entropy_of_their_votes(self):
        draws = torch.eye(4)[torch.tensor([[0], [1], [1], [2]])]
        assert ensemble_mutual_information(draws) == pytest.approx(1.5 * math.log(2), rel=1e-12)
