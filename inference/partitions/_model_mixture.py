"""A mixture over random partitions whose clusters are a Pyro model."""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_ext.inference.partitions._hyperparameters import Hyperparameters
from pyro_ext.inference.partitions._mixture import Floats, Integers, Law, Mixture, or_nothing
from pyro_ext.inference.partitions._slice_sampling import slice_sample, slice_sample_rows
from pyro_ext.posterior.fixed_points import Noise
from pyro_ext.potential import PointPotential

__all__ = ["ModelMixture"]

_NUM_WIDTH_DRAWS = 200
_QUARTILES_OF_NORMAL = 1.349  # their distance


class ModelMixture(Mixture):
    """Prior over partitions, and clusters with the latent sites of a Pyro model.

    A state has the values of a site of clusters for each point, those of the point's cluster, and
    of a shared site once.

    :param prior: a normalized measure or a Pyro model that returns one.
    :param PointPotential points: the model at the data.
    :param int num_updates: how often a step moves the sites of clusters.
    :raises ValueError: where a site is both of the prior and of the model.
    """

    def __init__(
        self, prior: Hyperparameters[Law], points: PointPotential, num_updates: int
    ) -> None:
        super().__init__(prior, list(points.sites), points.num_points)
        self.points = points
        self.num_updates = num_updates
        self.shared_names = [name for name in points.sites if name in points.shared]
        self.own_names = [name for name in points.sites if name not in points.shared]
        self._own_columns = [
            place for name in self.own_names for place in points.layout.columns(name)
        ]
        # From a fixed seed: every chain, and one that goes on elsewhere, takes the same.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            drawn = points.draw(_NUM_WIDTH_DRAWS).double().cpu().numpy()
        low, high = np.nanquantile(drawn, [0.25, 0.75], axis=0)
        spread = (high - low) / _QUARTILES_OF_NORMAL
        self._widths = np.where(np.isfinite(spread) & (spread > 0.0), spread, 1.0)

    def draw_clusters(self, labels: Tensor) -> dict[str, Tensor]:
        """Values of the sites of the model from their prior, one for each cluster."""
        drawn = self.points.constrain(self.points.draw(1))
        shared = {name: drawn[name][0] for name in self.shared_names}
        return self.own_values(self.fresh(int(labels.max()) + 1, shared), labels) | shared

    def fixed_clusters(self, labels: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Values of the sites of the model that do not depend on their prior."""
        places = noise("clusters", (int(labels.max()) + 1, self.points.layout.size)).numpy()
        values = self.points.constrain(self._flat(places[:1]))
        shared = {name: values[name][0] for name in self.shared_names}
        return self.own_values(places, labels) | shared

    def log_clusters(self, state: Mapping[str, Tensor]) -> float:
        """Log density of the sites of the model, and of the data given them."""
        labels = state["assignment"].numpy()
        prior, shared, likelihood = self.densities(self.places(state), labels)
        return or_nothing(float(prior.sum() + shared + likelihood.sum()))

    def move_clusters(
        self, state: Mapping[str, Tensor], held: Collection[str]
    ) -> dict[str, Tensor]:
        """Move the sites of clusters side by side, then those that they share."""
        labels = state["assignment"].numpy()
        places, counts = self.places(state), np.bincount(labels)
        widths = self._widths / np.sqrt(1.0 + counts[:, None])

        def of_clusters(places: Floats) -> Floats:
            prior, _, likelihood = self.densities(places, labels)
            total = prior + np.bincount(labels, likelihood, len(places))
            return np.where(np.isnan(total), -np.inf, total)

        def of_shared(columns: list[int], values: Tensor) -> float:
            moved = places.copy()
            moved[:, columns] = values.numpy()
            prior, shared, likelihood = self.densities(moved, labels)
            return or_nothing(float(prior.sum() + shared + likelihood.sum()))

        for _ in range(self.num_updates):
            places = slice_sample_rows(of_clusters, places, widths, self._own_columns)
            for name in self.shared_names:
                if name not in held:
                    columns = list(self.points.layout.columns(name))
                    start = torch.from_numpy(places[0, columns])
                    moved = slice_sample(partial(of_shared, columns), start)
                    places[:, columns] = moved.numpy()
        values = self.points.constrain(self._flat(places[:1]))
        moved_shared = {name: values[name][0] for name in self.shared_names if name not in held}
        return self.own_values(places, state["assignment"]) | moved_shared

    # Places: unconstrained values of all sites for each cluster, shared ones repeated.

    def places(self, state: Mapping[str, Tensor]) -> Floats:
        """Unconstrained values for each cluster. **Shape:** ``(num_clusters, size)``."""
        labels = state["assignment"].numpy()
        _, first = np.unique(labels, return_index=True)
        values = {name: state[name][first] for name in self.own_names}
        for name in self.shared_names:
            values[name] = state[name].expand(len(first), *state[name].shape)
        places: Floats = self.points.unconstrain(values).double().cpu().numpy()
        return places

    def own_values(self, places: Floats, labels: Tensor) -> dict[str, Tensor]:
        """Values of the sites of clusters for each point."""
        values = self.points.constrain(self._flat(places))
        return {name: values[name][labels] for name in self.own_names}

    def densities(self, places: Floats, labels: Integers) -> tuple[Floats, float, Floats]:
        """Log density of each cluster's own sites, of the shared ones, and of each point."""
        _, first = np.unique(labels, return_index=True)
        prior, shared, likelihood = self.points(self._flat(places[labels]))
        return (
            prior[first].double().cpu().numpy(),
            float(shared[0]),
            likelihood.double().cpu().numpy(),
        )

    def log_likelihood(self, place: Floats) -> Floats:
        """Log density of each point in one cluster, minus infinity where it is no number."""
        flat = self._flat(place).expand(self.num_points, -1)
        values: Floats = self.points(flat).likelihood.double().cpu().numpy()
        if np.isposinf(values).any():
            point = int(np.isposinf(values).argmax())
            raise ValueError(f"the density of point {point} in a cluster is infinite")
        return np.where(np.isnan(values), -np.inf, values)

    def fresh(self, number: int, shared: Mapping[str, Tensor]) -> Floats:
        """Places of new clusters, from the prior given the shared sites."""
        places: Floats = self.points.draw(number, shared).double().cpu().numpy()
        return places

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Check the values of the sites of clusters that a user gives.

        :raises ValueError: where a shape does not fit, or points of a cluster have other values.
        """
        labels = torch.as_tensor(state["assignment"]).long()
        _, numbers = labels.unique(return_inverse=True)
        for name, site in self.points.sites.items():
            if name not in state:
                continue
            value = torch.as_tensor(state[name])
            is_own = name in self.own_names
            wanted = (self.num_points, *site.shape) if is_own else tuple(site.shape)
            if value.shape != wanted:
                raise ValueError(
                    f"initial_params[{name!r}] must have shape {wanted}, got {tuple(value.shape)}"
                )
            if not is_own:
                continue
            first = torch.zeros(int(numbers.max()) + 1, dtype=torch.long)
            first[numbers] = torch.arange(len(numbers))
            if not torch.equal(value[first[numbers]], value):
                raise ValueError(
                    f"initial_params[{name!r}] must be the same for all points of a cluster"
                )

    def _flat(self, places: Floats) -> Tensor:
        layout: Any = self.points.layout
        return torch.from_numpy(places).to(dtype=layout.dtype, device=layout.device)
