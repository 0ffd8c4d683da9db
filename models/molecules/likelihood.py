"""Energies and forces as observations of a network: losses, a Pyro model, and ensembles."""

import warnings
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_ext._lib import checks
from pyro_ext.distributions import ForceNormal
from pyro_ext.models.molecules.race import RACE, Prediction
from pyro_ext.models.molecules.structures import Neighbors, atomic_numbers
from pyro_ext.nn import BayesianModule

LOSSES = ("mse", "energy", "joint")
_FAR = 100.0
_SETTINGS = (
    "species",
    "cutoff",
    "num_radial",
    "num_neighbors",
    "covariance",
    "extensive",
)


def potential_loss(
    prediction: Prediction,
    energies: Any,
    forces: Any,
    kind: str = "joint",
    *,
    energy_weight: float = 1.0,
    force_weight: float | None = None,
    densities: bool = True,
) -> Tensor:
    r"""Compute the loss of predicted energies and forces.

    .. math:: \lambda_E \Bigl(\frac{(y_E - \mu_E)^2}{\sigma_E^2} + \log \sigma_E^2\Bigr)
              + \frac{\lambda_F}{N} \sum_i \bigl((y_i - F_i)^\top \Sigma_i^{-1} (y_i - F_i)
              + \log |\Sigma_i|\bigr)

    averaged over structures, where :math:`N` is the number of atoms. By default
    :math:`\lambda_F = N`, and the loss is minus twice the log likelihood, up to a constant. This is
    ``"joint"``; in ``"energy"``, all :math:`\Sigma_i` are :math:`I`, and in ``"mse"``,
    :math:`\sigma_E^2` is also one. The paper [1] shows, and its page here confirms, that with
    ``"energy"`` the energies dominate the forces.

    The paper uses :math:`\lambda_F = 1`, with which forces are learned less well, and weights that
    scale the squares but not the log determinants, ``densities=False``. Such weights, unless they
    are one, make variances too large by the same factor.

    :param Prediction prediction: predictions for structures. **Shape:** ``(n,)`` and
        ``(n, num_atoms, 3)``.
    :param Tensor energies: energies relative to the reference, in eV. **Shape:** ``(n,)``.
    :param Tensor forces: forces in eV per Angstrom. **Shape:** ``(n, num_atoms, 3)``.
    :param str kind: ``"joint"``, ``"energy"`` or ``"mse"``.
    :param float energy_weight: :math:`\lambda_E`.
    :param float force_weight: :math:`\lambda_F`, by default the number of atoms.
    :param bool densities: whether the weights also scale the log determinants.
    :returns: a scalar.
    :raises ValueError: for shapes that do not fit, or numbers out of range.

    Example::

        >>> from pyro_ext.models.molecules import RACE, potential_loss
        >>> network, x = RACE([1], channels=4), torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, 0.7]]])
        >>> loss = potential_loss(network(x, [1, 1]), torch.zeros(1), torch.zeros(1, 2, 3))
        >>> loss.backward()
    """
    checks.instance("prediction", prediction, Prediction, "a Prediction")
    checks.choice("kind", kind, LOSSES)
    checks.number("energy_weight", energy_weight, least=0)
    checks.optional(checks.number, "force_weight", force_weight, least=0)
    mean = prediction.energy
    if force_weight is None:
        force_weight = float(prediction.forces.shape[-2])
    shapes = [str(tuple(one.shape)) for one in (mean, prediction.forces)]
    energies = checks.as_tensor("energies", energies, shapes[0], like=mean, finite=True)
    forces = checks.as_tensor("forces", forces, shapes[1], like=mean, finite=True)
    checks.boolean("densities", densities)
    _warn_of_reference(mean, energies, forces)
    of_energy = energy_weight * (energies - mean).square()
    if kind != "mse":
        log_variance = prediction.log_variance
        weight = energy_weight if densities else 1.0
        of_energy = of_energy * (-log_variance).exp() + weight * log_variance
    if kind == "joint":
        normal = ForceNormal(prediction.forces, prediction.l6, validate_args=False)
        weight = force_weight if densities else 1.0
        of_force = force_weight * normal.mahalanobis(forces) + weight * normal.log_det()
    else:
        of_force = force_weight * (forces - prediction.forces).square().sum(-1)
    total: Tensor = of_energy.mean() + of_force.mean()
    return total


class EnergyForceModel(nn.Module):
    r"""A Pyro model of energies and forces, with means and variances from a network.

    Sites are ``"energy"``, relative to the reference energies, and ``"forces"``, both in the plate
    ``"structures"``. If the network is a :class:`~pyro_ext.nn.BayesianModule`, its weights are
    sites, too; otherwise they are parameters.

    By default this is the likelihood. The weights scale the whole log densities of the two sites,
    by ``energy_weight`` and by ``force_weight`` divided by the number of atoms. Minus twice the log
    density is then the joint loss of :func:`potential_loss` with the same weights, times the number
    of structures, up to a constant.

    A network that has not been centered is centered by :meth:`RACE.center`, at the first energies
    and forces that the model sees.

    :param network: a :class:`~pyro_ext.models.molecules.RACE`, or a
        :class:`~pyro_ext.nn.BayesianModule` of one.
    :param species: atomic numbers or symbols. **Shape:** ``(num_atoms,)``.
    :param Neighbors neighbors: neighbors of each atom; by default all other atoms.
    :param float energy_weight: :math:`\lambda_E`.
    :param float force_weight: :math:`\lambda_F`, by default the number of atoms.
    :param int batch_size: number of structures of a minibatch; ``None`` uses all.
    :raises TypeError: for a network of another kind.

    Example::

        >>> from pyro_ext.models.molecules import RACE, EnergyForceModel
        >>> from pyro_ext.nn import BayesianModule
        >>> network = BayesianModule(RACE([1, 8], channels=4), prior_scale=0.1)
        >>> model = EnergyForceModel(network, [8, 1, 1])
        >>> water = torch.tensor([[[0.0, 0.0, 0.1], [0.0, 0.8, -0.5], [0.0, -0.8, -0.5]]])
        >>> trace = pyro.poutine.trace(model).get_trace(water)
        >>> trace.nodes["energy"]["value"].shape, trace.nodes["forces"]["value"].shape
        (torch.Size([1]), torch.Size([1, 3, 3]))
    """

    def __init__(
        self,
        network: RACE | BayesianModule,
        species: Any,
        neighbors: Neighbors | None = None,
        *,
        energy_weight: float = 1.0,
        force_weight: float | None = None,
        batch_size: int | None = None,
    ) -> None:
        super().__init__()
        kinds = "a RACE or a BayesianModule of one"
        checks.instance("network", network, (RACE, BayesianModule), kinds)
        checks.instance("network", _race(network), RACE, kinds)
        checks.optional(checks.instance, "neighbors", neighbors, Neighbors, "Neighbors or None")
        self.network, self.neighbors = network, neighbors
        _race(network).places(species)
        self.species = atomic_numbers(species)
        self.energy_weight = checks.number("energy_weight", energy_weight, above=0)
        if force_weight is None:
            force_weight = float(len(self.species))
        self.force_weight = checks.number("force_weight", force_weight, above=0)
        self.batch_size = checks.optional(checks.integer, "batch_size", batch_size, 1)

    def forward(self, positions: Any, energies: Any = None, forces: Any = None) -> Prediction:
        """Run the model.

        :param Tensor positions: positions in Angstrom. **Shape:** ``(n, num_atoms, 3)``.
        :param Tensor energies: observed energies in eV, including the reference. **Shape:**
            ``(n,)``.
        :param Tensor forces: observed forces in eV per Angstrom. **Shape:** ``(n, num_atoms, 3)``.
        :returns: what the network predicts for the minibatch.
        """
        count, race = len(self.species), _race(self.network)
        positions = checks.as_tensor("positions", positions, f"(n, {count}, 3)", finite=True)
        number = len(positions)
        if energies is not None:
            shape = f"({number},)"
            energies = checks.as_tensor(
                "energies", energies, shape, finite=True, dtype=torch.float64
            )
        if forces is not None:
            shape = f"({number}, {count}, 3)"
            forces = checks.as_tensor("forces", forces, shape, finite=True, like=race.embedding)
        if energies is not None:
            if forces is not None and not race.is_centered and bool(forces.any()):
                race.center(self.species, energies, forces)
            energies = race.relative(self.species, energies)
        if isinstance(self.network, RACE):
            pyro.module("network", self.network)
        size = None if self.batch_size is None else min(self.batch_size, number)
        plate = pyro.plate("structures", number, subsample_size=size)
        if size is not None and size < number:
            rows = plate.indices
            positions = positions[rows]
            energies = None if energies is None else energies[rows]
            forces = None if forces is None else forces[rows]
        found: Prediction = self.network(positions, self.species, self.neighbors)
        with plate:
            with poutine.scale(scale=self.energy_weight):
                of_energy = dist.Normal(found.energy, (0.5 * found.log_variance).exp())
                pyro.sample("energy", of_energy, obs=energies)
            with poutine.scale(scale=self.force_weight / count):
                own: Any = ForceNormal(found.forces, found.l6)
                of_force = own.to_event(1)
                pyro.sample("forces", of_force, obs=forces)
        return found


def _warn_of_reference(mean: Tensor, energies: Tensor, forces: Tensor) -> None:
    """Warn where energies count from somewhere else than those of the network."""
    try:
        offset = abs(float((energies - mean.detach()).mean()))
        size = float(forces.square().mean().sqrt() + energies.std(correction=0))
    except RuntimeError:  # under vmap and in a graph that is recorded there are no values
        return
    if offset > _FAR * size > 0.0:
        warnings.warn(
            f"energies are {offset:.3g} eV from those of the network on average, where they and "
            f"forces vary by {size:.3g}: call network.center(species, energies, forces) before "
            "training, and use network.relative(species, energies)",
            stacklevel=3,
        )


def ensemble_prediction(
    networks: Sequence[RACE], positions: Any, species: Any, neighbors: Neighbors | None = None
) -> Prediction:
    """Predict with several networks of the same form at once, without gradients in weights.

    If members have different reference energies, all energies are relative to the mean of these.

    :param networks: the members, made with the same arguments.
    :param Tensor positions: positions in Angstrom. **Shape:** ``(*batch, num_atoms, 3)``.
    :param species: atomic numbers or symbols. **Shape:** ``(num_atoms,)``.
    :param Neighbors neighbors: neighbors of each atom; by default all other atoms.
    :returns: predictions with a leading member dimension.
    :raises ValueError: for networks of different forms, or wrong structures.

    Example::

        >>> from pyro_ext.models.molecules import RACE, ensemble_prediction
        >>> members = [RACE([1], channels=4) for _ in range(3)]
        >>> x = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.7]])
        >>> ensemble_prediction(members, x, [1, 1]).forces.shape
        torch.Size([3, 2, 3])
    """
    members = as_members(networks)
    if len(members) > 1:  # one checks by itself
        members[0].check_structures(positions, species, neighbors)
    return members_prediction(members, positions, species, neighbors)


def members_prediction(
    members: Sequence[RACE], positions: Any, species: Any, neighbors: Neighbors | None = None
) -> Prediction:
    """Predictions of members of the same form for structures, both of which have been checked."""
    first = members[0]
    with torch.no_grad():
        if len(members) == 1:
            alone = first(positions, species, neighbors)
            return Prediction(*(one[None] for one in alone))
        states = [one.state_dict() for one in members]
        stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}

        def run(state: dict[str, Tensor]) -> Prediction:
            found: Prediction = torch.func.functional_call(
                first, state, (positions, species, neighbors)
            )
            return found

        every: Prediction = torch.vmap(run)(stacked)
        references = [one.reference_energy(species) for one in members]
        middle = sum(references) / len(references)
        apart = every.energy.new_tensor([reference - middle for reference in references])
        return every._replace(
            energy=every.energy + apart.reshape(-1, *[1] * (every.energy.dim() - 1))
        )


def as_members(networks: Any) -> list[RACE]:
    """Networks that are all of the same form."""
    members: list[RACE] = checks.sequence("networks", networks, "a list of RACE networks", 1, RACE)
    first = _form(members[0])
    for number, one in enumerate(members):
        form = _form(one)
        if other := [name for name in first | form if first.get(name) != form.get(name)]:
            raise ValueError(
                f"networks must all have the same form, got networks[{number}] of which "
                f"{', '.join(other[:3])} {'is' if len(other) == 1 else 'are'} not as of networks[0]"
            )
    return members


def _form(network: RACE) -> dict[str, Any]:
    """Settings of a network, and shape, type and device of its tensors."""
    tensors = {k: (v.shape, v.dtype, v.device) for k, v in network.state_dict().items()}
    return {name: getattr(network, name) for name in _SETTINGS} | tensors


def _race(network: Any) -> Any:
    return network.module if isinstance(network, BayesianModule) else network
