"""An interatomic potential by message passing that also predicts its uncertainty."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from pyro_ext._lib import checks
from pyro_ext.distributions.force_normal import heads_of
from pyro_ext.models.molecules.structures import (
    LEAST_DISTANCE,
    Neighbors,
    all_pairs,
    atomic_numbers,
)

_NUM_HEADS = 8
_NUM_VECTORS = 3
_FLOOR = 1e-6


class Prediction(NamedTuple):
    """Predictions of a :class:`RACE` for structures, in eV and Angstrom.

    :param Tensor energy: energy relative to the sum of reference energies. **Shape:** ``batch``.
    :param Tensor forces: negative gradient of the energy. **Shape:** ``(*batch, num_atoms, 3)``.
    :param Tensor log_variance: logarithm of the variance of the energy. **Shape:** ``batch``.
    :param Tensor l6: covariance of each force, in the form of
        :class:`~pyro_ext.distributions.ForceNormal`. **Shape:** ``(*batch, num_atoms, 6)``.
    :param Tensor virial: gradient of the energy in a strain, which is the stress times the volume.
        **Shape:** ``(*batch, 3, 3)``.
    """

    energy: Tensor
    forces: Tensor
    log_variance: Tensor
    l6: Tensor
    virial: Tensor


def _bessel(distance: Tensor, cutoff: float, num_features: int) -> Tensor:
    """The features of distances above zero, times an envelope that is zero from the cutoff on."""
    orders = torch.arange(1, num_features + 1)
    angles = distance[..., None] * (orders.to(distance) * (math.pi / cutoff))
    inside = (distance / cutoff).clamp(max=1.0)
    envelope = 1.0 - inside.square() * (6.0 - 8.0 * inside + 3.0 * inside.square())
    envelope = torch.where(inside < 1.0, envelope, torch.zeros_like(envelope))
    return angles.sin() * (math.sqrt(2.0 / cutoff) * envelope / distance)[..., None]


class _Layer(nn.Module):
    """One more body in the features of atoms: messages, a product with the species, and a skip."""

    def __init__(self, num_species: int, channels: int, radial: Sequence[int], first: bool) -> None:
        super().__init__()
        self.first = first
        scalar_paths, vector_paths = (1, 1) if first else (2, 3)
        sizes = [*radial, (scalar_paths + vector_paths) * channels]
        self.radial = nn.ModuleList(_linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.up, self.down = _linear(channels, channels), _linear(scalar_paths * channels, channels)
        self.mix, self.skip = _linear(channels, channels), _skip(num_species, channels)
        self.vector_down = _linear(vector_paths * channels, channels)
        self.vector_mix = _linear(channels, channels)
        if not first:
            self.vector_up = _linear(channels, channels)
            self.vector_skip = _skip(num_species, channels)

    def forward(
        self, scalars: Tensor, vectors: Tensor, own: Tensor, species: Tensor, edges: "_Edges"
    ) -> tuple[Tensor, Tensor]:
        """New features of atoms, of scalars ``(c, n, b)`` and vectors ``(c, 3, n, b)``."""
        features = edges.features
        for number, layer in enumerate(self.radial):
            features = _mapped(layer, silu(features) if number else features)
        weights = features.unflatten(0, (-1, len(scalars))).unbind(0)
        sent = edges.seen(_mapped(self.up, scalars))
        flat, directed = [weights[0] * sent], [edges.turned(weights[1] * sent)]
        if not self.first:
            arrows = edges.seen(_mapped(self.vector_up, vectors))
            along = (arrows * edges.units).sum(1)
            flat.append(weights[2] * along)
            directed += [(weights[3][:, None] * arrows).sum(2), edges.turned(weights[4] * along)]
        message = _mapped(self.down, torch.cat(flat).sum(1)) * edges.share
        arrow = _mapped(self.vector_down, torch.cat(directed)) * edges.share
        new = _mapped(self.mix, own * message) + _by_species(self.skip[species], scalars)
        new_vectors = _mapped(self.vector_mix, own[:, None] * arrow)
        if not self.first:
            new_vectors = new_vectors + _by_species(self.vector_skip[species], vectors)
        return new, new_vectors


class _Edges(NamedTuple):
    """Pairs of neighbors; batches stand last, so that elementwise work is done in long runs.

    ``others`` is ``(k, n)``, ``units`` are directions ``(3, k, n, b)``, ``features`` those of
    distances ``(f, k, n, b)``, and ``share`` is one over the usual number of neighbors.
    """

    others: Tensor
    units: Tensor
    features: Tensor
    share: float

    def seen(self, features: Tensor) -> Tensor:
        """Features of neighbors, ``(..., k, n, b)`` of ``(..., n, b)``."""
        found = features.index_select(-2, self.others.flatten())
        seen: Tensor = found.unflatten(-2, self.others.shape)
        return seen

    def turned(self, messages: Tensor) -> Tensor:
        """Messages ``(c, k, n, b)`` along directions, summed over neighbors: ``(c, 3, n, b)``."""
        return (messages[:, None] * self.units).sum(2)


class RACE(nn.Module):
    r"""Energy and forces of atoms, with the variance of the energy and covariances of forces [1].

    Features of an atom are scalars and vectors. Each layer sums messages over the neighbors: their
    features times harmonics of the direction up to second order, weighted by functions of the
    distance. It then multiplies by the species of the atom and adds one term to its energy, so that
    layer :math:`\eta` describes interactions of :math:`\eta + 1` atoms. The energy is invariant
    under rotations, reflections and translations, and under permutations of atoms of the same
    species; forces are its negative gradient.

    Six further outputs of each atom define the covariance of its force. In the paper, they are
    computed from scalars and do not rotate with the molecule. With ``covariance="equivariant"``,
    the covariance is :math:`s I + \sum_k v_k v_k^\top` with vectors of the network, and does. The
    logarithm of the variance of the energy is a mean over the atoms, which does not depend on the
    size of a molecule; with ``extensive=True``, the variance is a sum over the atoms.

    Harmonics of third order, and atom features beyond vectors, which the paper also has, are left
    out: all computations are in Cartesian coordinates.

    :param species: atomic numbers or symbols that the network knows.
    :param float cutoff: :math:`r_c`, in Angstrom.
    :param int channels: number of scalars, and of vectors, of an atom.
    :param int num_layers: number of layers.
    :param int num_radial: number of Bessel functions of a distance.
    :param int radial_hidden: width of the two hidden layers of the radial networks.
    :param float num_neighbors: number by which sums over neighbors are divided.
    :param str covariance: ``"invariant"`` or ``"equivariant"``.
    :param bool extensive: whether the variance of the energy is a sum over atoms.
    :ivar Tensor reference: reference energy of each species, which :meth:`center` sets.
    :ivar Tensor scale: factor of the energy, which :meth:`center` sets.
    :raises ValueError: for numbers out of range, or unknown elements.

    [1] S. Y. Willow and others (2025), Bayesian E(3)-equivariant interatomic potential with
    iterative restratification of many-body message passing, arXiv 2510.03046.

    Example::

        >>> from pyro_ext.models.molecules import RACE
        >>> water = torch.tensor([[0.0, 0.0, 0.1], [0.0, 0.8, -0.5], [0.0, -0.8, -0.5]])
        >>> found = RACE([1, 8], channels=8)(water, [8, 1, 1])
        >>> found.energy.shape, found.forces.shape, found.l6.shape
        (torch.Size([]), torch.Size([3, 3]), torch.Size([3, 6]))
        >>> bool(found.forces.sum(0).abs().max() < 1e-5)
        True
    """

    reference: Tensor
    scale: Tensor

    def __init__(
        self,
        species: Any,
        *,
        cutoff: float = 5.0,
        channels: int = 32,
        num_layers: int = 3,
        num_radial: int = 12,
        radial_hidden: int = 32,
        num_neighbors: float = 5.0,
        covariance: str = "invariant",
        extensive: bool = False,
    ) -> None:
        super().__init__()
        numbers = sorted(set(atomic_numbers(species)))
        self.cutoff = checks.number("cutoff", cutoff, above=LEAST_DISTANCE)
        channels = checks.integer("channels", channels, 1)
        num_layers = checks.integer("num_layers", num_layers, 1)
        self.num_radial = checks.integer("num_radial", num_radial, 1)
        hidden = checks.integer("radial_hidden", radial_hidden, 1)
        self.num_neighbors = checks.number("num_neighbors", num_neighbors, above=0)
        checks.choice("covariance", covariance, ("invariant", "equivariant"))
        self.covariance = covariance
        self.extensive = checks.boolean("extensive", extensive)
        self.species: tuple[int, ...] = tuple(numbers)
        self.register_buffer("reference", torch.zeros(len(numbers)))
        self.register_buffer("scale", torch.ones(()))
        self.embedding = nn.Parameter(torch.randn(len(numbers), channels))
        self.own = _linear(channels, channels)
        radial = [num_radial, hidden, hidden]
        self.layers = nn.ModuleList(
            _Layer(len(numbers), channels, radial, number == 0) for number in range(num_layers)
        )
        self.readouts = nn.ModuleList(
            nn.ModuleList([nn.Linear(channels, channels), _linear(channels, _NUM_HEADS)])
            for _ in range(num_layers)
        )
        readouts: Any = self.readouts
        for _, outputs in readouts:
            nn.init.zeros_(outputs.weight[1:])  # variances start at one, whatever the structure
        if covariance == "equivariant":
            self.arrows = nn.ModuleList(_linear(channels, _NUM_VECTORS) for _ in range(num_layers))

    def forward(
        self, positions: Tensor, species: Any, neighbors: Neighbors | None = None
    ) -> Prediction:
        """Predict energies, forces and their uncertainties for structures of the same atoms.

        It also runs under :func:`torch.vmap` over parameters and structures.

        :param Tensor positions: positions in Angstrom. **Shape:** ``(*batch, num_atoms, 3)``.
        :param species: atomic numbers or symbols. **Shape:** ``(num_atoms,)``.
        :param Neighbors neighbors: neighbors of each atom; by default all other atoms.
        :raises ValueError: for unknown elements, coinciding atoms, positions that are not finite,
            or shapes that do not fit.
        """
        places = self.places(species)
        flat, vectors, index, mask = self._geometry(positions, len(places), neighbors)
        _check_apart(vectors)

        def total(edges: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
            energy, log_variance, l6 = self._outputs(edges, index, places)
            return energy.sum(), (energy, log_variance, l6)

        slopes, (energy, log_variance, l6) = torch.func.grad(total, has_aux=True)(vectors)
        slopes = torch.where(mask, slopes, 0.0)
        # What pulls at the atom that is seen pushes the one that sees it.
        received = torch.zeros_like(flat).index_add(1, index.flatten(), slopes.flatten(1, 2))
        forces = (slopes.sum(1) - received).permute(2, 1, 0)
        virial = torch.einsum("xknb,yknb->bxy", vectors, slopes)
        batch, count = torch.as_tensor(positions).shape[:-2], len(places)
        return Prediction(
            energy.reshape(batch),
            forces.reshape(*batch, count, 3),
            log_variance.reshape(batch),
            l6.reshape(*batch, count, 6),
            (0.5 * (virial + virial.mT)).reshape(*batch, 3, 3),
        )

    def check_structures(
        self, positions: Any, species: Any, neighbors: Neighbors | None = None
    ) -> None:
        """Raise the errors of a call, which a call under :func:`torch.vmap` cannot raise."""
        places = self.places(species)
        _check_apart(self._geometry(positions, len(places), neighbors)[1])

    def places(self, species: Any) -> Tensor:
        """Return the index of each atom's species among the known ones; raise for others."""
        numbers = atomic_numbers(species)
        if unknown := sorted(set(numbers) - set(self.species)):
            raise ValueError(
                f"species must be among the atomic numbers {list(self.species)} that the network "
                f"knows, got {unknown}"
            )
        places = [self.species.index(number) for number in numbers]
        return torch.tensor(places, device=self.embedding.device)

    def center(self, species: Any, energies: Any, forces: Any) -> None:
        """Measure energies from their mean, in units of the root mean square of forces.

        :param species: atomic numbers or symbols. **Shape:** ``(num_atoms,)``.
        :param energies: energies of structures of these atoms, in eV. **Shape:** ``(n,)``.
        :param forces: forces in eV per Angstrom. **Shape:** ``(n, num_atoms, 3)``.
        :raises ValueError: for shapes that do not fit, or forces that are all zero.
        """
        places = self.places(species)
        mean = checks.as_tensor(
            "energies", energies, "(n,)", finite=True, dtype=torch.float64
        ).mean()
        shape = f"(n, {len(places)}, 3)"
        forces = checks.as_tensor("forces", forces, shape, finite=True, dtype=torch.float64)
        size = forces.square().mean().sqrt()
        if not float(size) > 0:
            raise ValueError(f"forces must not all be zero, got {checks.shown(forces)}")
        counts = places.bincount(minlength=len(self.reference)).double()
        self.reference.copy_((mean.to(counts) / counts.square().sum()) * counts)
        self.scale.copy_(size)

    @property
    def is_centered(self) -> bool:
        """Tell whether :meth:`center` has been called."""
        return bool(self.reference.any()) or float(self.scale) != 1.0

    def reference_energy(self, species: Any) -> float:
        """Sum of the atoms' reference energies, which :attr:`Prediction.energy` leaves out."""
        return float(self.reference[self.places(species)].double().sum())

    def relative(self, species: Any, energies: Any) -> Tensor:
        """Subtract the reference energy, and convert to the type of the network."""
        energies = checks.as_tensor("energies", energies, "(n,)", finite=True, dtype=torch.float64)
        found: Tensor = (energies - self.reference_energy(species)).to(self.embedding)
        return found

    def _geometry(
        self, positions: Any, count: int, neighbors: Neighbors | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Positions ``(3, n, b)``, and of neighbors vectors ``(3, k, n, b)``, numbers, mask."""
        like = self.embedding
        positions = checks.as_tensor("positions", positions, f"(*batch, {count}, 3)", finite=True)
        positions = positions.to(device=like.device, dtype=like.dtype)
        index, shifts, mask = all_pairs(count) if neighbors is None else _checked(neighbors, count)
        index, mask = index.mT.to(like.device), mask.mT[..., None].to(like.device)
        flat = positions.reshape(-1, count, 3).permute(2, 1, 0)
        seen = flat.index_select(1, index.flatten()).unflatten(1, index.shape)
        vectors = seen - flat[:, None] + shifts.to(like).permute(2, 1, 0)[..., None]
        # Atoms that are not neighbors are put at the cutoff, where they have no effect.
        far = like.new_tensor([self.cutoff, 0.0, 0.0])[:, None, None, None]
        return flat, torch.where(mask, vectors, far), index, mask

    def _outputs(
        self, vectors: Tensor, index: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Energies, log variances and heads of forces, of vectors to neighbors ``(3, k, n, b)``."""
        distances = vectors.square().sum(0).sqrt()
        features = _bessel(distances, self.cutoff, self.num_radial)
        scaled = features.movedim(-1, 0) * math.sqrt(self.cutoff)
        edges = _Edges(index, vectors / distances, scaled, 1.0 / self.num_neighbors)
        scalars = self.embedding[places].mT[..., None].expand(-1, -1, vectors.shape[-1])
        own = _mapped(self.own, scalars)
        arrows = torch.zeros(())
        heads, turned = [], []
        for number, layer in enumerate(self.layers):
            scalars, arrows = layer(scalars, arrows, own, places, edges)
            readout: Any = self.readouts[number]
            hidden, outputs = readout
            heads.append(_mapped(outputs, silu(_mapped(hidden, scalars))))
            if self.covariance == "equivariant":
                turned.append(_mapped(self.arrows[number], arrows))
        every = torch.stack(heads)  # (layers, heads, n, b)
        energy = self.scale * every[:, 0].sum((0, 1))
        rest = every[:, 1:].mean(0)
        spread = rest[0].logsumexp(0) if self.extensive else rest[0].mean(0)
        l6 = rest[1:].permute(2, 1, 0)
        if turned:
            found = torch.stack(turned).mean(0).permute(3, 2, 1, 0)  # (b, n, 3, vectors)
            outer = found @ found.mT
            floor = l6[..., 0].exp() + _FLOOR * found.square().sum((-1, -2))
            eye = torch.eye(3, dtype=outer.dtype, device=outer.device)
            l6 = heads_of(torch.linalg.cholesky_ex(outer + floor[..., None, None] * eye)[0])
        return energy, spread, l6


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear map without bias that keeps the size of what is random."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, 0.0, 1.0 / math.sqrt(inputs))
    return layer


def _skip(num_species: int, channels: int) -> nn.Parameter:
    """Matrices of a linear map for each species."""
    return nn.Parameter(torch.randn(num_species, channels, channels) / math.sqrt(channels))


def _mapped(layer: Any, features: Tensor) -> Tensor:
    """A linear map of the first dimension."""
    found: Tensor = (layer.weight @ features.flatten(1)).unflatten(1, features.shape[1:])
    if layer.bias is not None:
        found = found + layer.bias.reshape(-1, *[1] * (features.dim() - 1))
    return found


def _by_species(weights: Tensor, features: Tensor) -> Tensor:
    """A linear map ``(n, c, c)`` of each atom's features ``(c, ..., n, b)``."""
    return torch.einsum("nrc,c...nb->r...nb", weights, features)


def _checked(neighbors: Neighbors, count: int) -> Neighbors:
    """Neighbors of as many atoms."""
    checks.instance("neighbors", neighbors, Neighbors, "Neighbors or None")
    index, shifts, mask = neighbors
    k = index.shape[-1] if isinstance(index, Tensor) and index.dim() else 0
    index = checks.as_tensor(
        "neighbors.others", index, f"({count}, {k})", kind="integers", allow_empty=True
    )
    if bool(((index < 0) | (index >= count)).any()):
        raise ValueError(
            f"neighbors.others must be numbers of atoms from 0 to {count - 1}, got "
            f"{int(index.min())} to {int(index.max())}"
        )
    return Neighbors(
        index,
        checks.as_tensor(
            "neighbors.shifts", shifts, f"({count}, {k}, 3)", allow_empty=True, finite=True
        ),
        checks.as_tensor(
            "neighbors.mask", mask, f"({count}, {k})", kind="booleans", allow_empty=True
        ),
    )


def _check_apart(vectors: Tensor) -> None:
    """Raise an error where an atom is on top of another."""
    if not vectors.numel():
        return
    distances = vectors.detach().square().sum(0)
    try:
        nearest = math.sqrt(float(distances.min()))
    except RuntimeError:  # under vmap and in a graph that is recorded there are no values
        return
    if nearest < LEAST_DISTANCE:
        _, atom, row = (distances == distances.min()).nonzero()[0].tolist()
        raise ValueError(
            f"positions must have atoms at least {LEAST_DISTANCE} Angstrom apart, got atom {atom} "
            f"of structure {row} at {nearest:.3g} Angstrom from another"
        )
