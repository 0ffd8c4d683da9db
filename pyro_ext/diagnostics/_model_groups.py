"""Groups that a model adds to posterior draws: likelihood, predictions, prior, observations."""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ext.posterior.draws import Arrays, Context, to_array
from pyro_ext.potential import Site
from pyro_ext.potential.enumerated_likelihood import EnumeratedLikelihood
from pyro_ext.potential.model_at_values import ModelAtValues

_NUM_TRIALS = 10


def model_of(context: Context, needs: Mapping[str, bool]) -> ModelAtValues | None:
    """The model and its data, through which all groups are computed."""
    if context.potential is not None:
        return context.potential
    if context.model is None:
        if lacking := [name for name, is_strict in needs.items() if is_strict]:
            raise ValueError(f"{' and '.join(lacking)} needs a model: pass it as model=...")
        return None
    if needs:
        with _explained(list(needs)):
            return _checked_model(context)
    try:
        return _checked_model(context)
    except Exception as error:
        warnings.warn(
            f"model cannot be evaluated ({type(error).__name__}: {error}), so the result has "
            "neither the observed data nor the names of plates",
            stacklevel=3,
        )
        return None


def _checked_model(context: Context) -> ModelAtValues:
    assert context.model is not None
    model = ModelAtValues(context.model, *context.args, **context.kwargs)
    model.validate()
    return model


def check_shapes(arrays: Arrays, sites: Mapping[str, Site], argument: str) -> None:
    """Raise where draws of a site do not have the shape of the site."""
    for name in arrays.keys() & sites.keys():
        event, wanted = arrays[name].shape[2:], tuple(sites[name].shape)
        if event != wanted:
            raise ValueError(
                f"{argument}[{name!r}] has the shape {event} after chains and draws, but the site "
                f"of the model has the shape {wanted} over all of the data; wanted draws for the "
                "same arguments of the model, and for whole plates rather than a subsample"
            )


class ModelGroups:
    """Groups that a model and its data give to draws of its posterior."""

    def __init__(self, model: ModelAtValues, observed: Collection[str]) -> None:
        self.model, self._discrete = model, model.structure.discrete
        _check_names("observed", observed, model.observed_sites)
        conditioned = {name for name, site in model.observed_sites.items() if site.is_conditioned}
        constant = model.depended_on(conditioned - set(observed))
        self.data = {n: site for n, site in model.observed_sites.items() if n not in constant}
        """The observed sites that have a likelihood."""
        self.sites: dict[str, Site] = {
            **model.sites,
            **model.deterministic_sites,
            **model.structure.transformed,
            **model.observed_sites,
        }
        """Site of each variable."""
        self.points: dict[str, npt.NDArray[np.bool_]] = {}
        """Mask of the points of masked observed sites that count. **Shape:** ``(*batch)`` each."""
        self._elements: dict[str, npt.NDArray[np.bool_]] = {}
        self._varying: list[str] = []

    def split(self, arrays: Arrays) -> tuple[Arrays, Arrays]:
        """Part draws into those of observed sites, which come second, and the rest."""
        return (
            {name: array for name, array in arrays.items() if name not in self.data},
            {name: array for name, array in arrays.items() if name in self.data},
        )

    def completed(self, arrays: Arrays, seed: int | None) -> Arrays:
        """Add sites that Pyro draws and forgets, those of ``ConjugateReparam``."""
        lacking = self._lacking(arrays)
        if not lacking or not all(self.model.sites[name].is_untraced for name in lacking):
            return arrays
        values = self._latents(arrays, seed=seed)
        return arrays | {name: to_array(values[name], name) for name in lacking}

    def with_deterministic(self, arrays: Arrays) -> Arrays:
        """Add deterministic sites that draws lack, but for those of discrete sites not drawn."""
        missing = [name for name in self.model.deterministic_sites if name not in arrays]
        lacking = self._lacking(arrays)
        has_none = len(lacking) == len(self.model.sites)
        if not missing or has_none or not set(lacking) <= set(self._discrete):
            return arrays
        latents = self._latents(arrays, seed=0)
        try:
            values = self.model.deterministic(latents)
        except ValueError as error:
            warnings.warn(f"the sites {missing} are left out: {error}", stacklevel=3)
            return arrays
        if lacking:
            few = {name: latents[name][:, :_NUM_TRIALS] for name in latents if name not in lacking}
            others = self.model.deterministic(self.model.completed(few, 1))
            missing = [n for n in missing if torch.equal(values[n][:, :_NUM_TRIALS], others[n])]
        return arrays | {name: to_array(values[name], name) for name in missing}

    def find_masks(self, arrays: Arrays) -> None:
        """Find out which points of masked sites count at draws of the latent sites."""
        if not any(site.is_masked for site in self.data.values()):
            return
        lacking = self._lacking(arrays)
        if len(lacking) == len(self.model.sites):
            latents = {name: value[None] for name, value in self.model.prior(1, 0, ()).items()}
        elif lacking:
            latents = self._latents({name: array[:1, :1] for name, array in arrays.items()}, seed=0)
        else:
            latents = self._tensors(arrays)
        for name, value in self.model.counted(latents).items():
            counted = to_array(value, name)
            if (counted != counted[:1, :1]).any():
                self._varying.append(name)
            self._elements[name] = elements = np.asarray(counted.any((0, 1)))
            event = tuple(range(elements.ndim - self.sites[name].event_dim, elements.ndim))
            self.points[name] = np.asarray(elements.any(event))

    def log_likelihood(self, arrays: Arrays, wanted: bool | Sequence[str]) -> Arrays:
        """Log likelihood of each observation at each draw."""
        names = list(self.data) if isinstance(wanted, bool) else list(wanted)
        _check_names("log_likelihood", names, self.data)
        is_default = isinstance(wanted, bool)
        if varying := [name for name in names if name in self._varying]:
            _refuse(f"the masks of the sites {varying} differ between draws", is_default)
        # A site of an improper prior, such as SplitReparam makes, has no density of its own.
        names = [n for n in names if n not in varying and not self.data[n].is_improper]
        if not names:
            return {}
        lacking = self._lacking(arrays)
        if set(lacking) & set(self._discrete):
            return self._enumerated(arrays, names, is_default)
        latents = self._latents(arrays, "log_likelihood")
        with _explained(["log_likelihood"]):
            values = self.model.log_likelihood(latents)
        return {name: to_array(values[name], name) for name in names}

    def _enumerated(self, arrays: Arrays, names: Sequence[str], is_default: bool) -> Arrays:
        """Log likelihoods with the discrete sites that draws lack summed out."""
        continuous = [name for name in self.model.sites if name not in self._discrete]
        self._check_lacking([n for n in continuous if n not in arrays], "log_likelihood")
        given = self._tensors(arrays)
        try:
            marginal = EnumeratedLikelihood(self.model, given)
            values = marginal(given)
        except Exception as error:
            lacking = self._lacking(arrays)
            _refuse(
                f"the discrete sites {lacking}, of which there are no draws, cannot be summed out "
                f"({type(error).__name__}: {error})",
                is_default,
            )
            return {}
        if lost := [name for name in names if name in marginal.left_out]:
            _refuse(
                f"the sites {lost} have no likelihood of single points: discrete sites outside of "
                "all plates tie them together",
                is_default,
            )
        result = {}
        for name, members in marginal.members.items():
            if not set(members) & set(names):
                continue
            result[name] = to_array(values[name], name)
            if name not in self.sites:
                self.sites[name] = marginal.sites[name]
                self._count_jointly(name, members)
        return result

    def _count_jointly(self, name: str, members: Sequence[str]) -> None:
        """A point of several sites counts where one of its parts does."""
        if not all(member in self.points for member in members):
            return
        plates = [plate.name for plate in self.sites[name].plates]
        counts = []
        for member in members:
            dims = self.sites[member].dims
            others = tuple(i for i, dim in enumerate(dims) if dim not in plates)
            counts.append(self.points[member].any(others))
        self.points[name] = np.any(counts, axis=0)

    def predictive(self, arrays: Arrays, seed: int | None) -> Arrays:
        """New values of the observed sites, one for each draw."""
        latents = self._latents(arrays, "posterior_predictive", seed)
        with _explained(["posterior_predictive"]):
            return self._as_observed(self.model.predictive(latents, seed, list(self.data)))

    def prior(self, num_samples: int, seed: int | None) -> Arrays:
        """Draws of all sites from the model, in a single chain."""
        with _explained(["prior"]):
            drawn = self.model.prior(num_samples, seed, list(self.data))
        return self.with_deterministic(
            self._as_observed({name: value[None] for name, value in drawn.items()})
        )

    def observed(self) -> tuple[Arrays, Arrays]:
        """Observed values over all of the data, and those of conditioned latent sites."""
        data: Arrays = {}
        constant: Arrays = {}
        values = self.model.observations()
        if computed := sorted(self.model.observed_sites.keys() - values.keys()):
            warnings.warn(
                f"observed_data lacks the sites {computed}: the model computes their observations "
                "from latent sites, like a residual, so that they differ between draws",
                stacklevel=3,
            )
        for name, value in values.items():
            array = to_array(value, name)
            if name in self.model.observed_sites and name not in self.data:
                constant[name] = array
                continue
            if name in self.points:
                points = self.points[name]
                points = points.reshape(points.shape + (1,) * self.sites[name].event_dim)
                hidden = points & ~self._elements[name]
                array = np.where(hidden, np.nan, array) if hidden.any() else array
            data[name] = array
        return data, constant

    def _lacking(self, arrays: Arrays) -> list[str]:
        return [name for name in self.model.sites if name not in arrays]

    def _check_lacking(self, lacking: Sequence[str], purpose: str) -> None:
        if lacking:
            raise ValueError(
                f"posterior lacks draws of the latent sites {list(lacking)}, which {purpose} "
                f"needs: add them, or pass {purpose}=False"
            )

    def _tensors(self, arrays: Arrays) -> dict[str, Tensor]:
        return {
            name: torch.tensor(arrays[name], dtype=site.dtype, device=site.device)
            for name, site in self.model.sites.items()
            if name in arrays
        }

    def _latents(
        self, arrays: Arrays, purpose: str | None = None, seed: int | None = None
    ) -> dict[str, Tensor]:
        """Values of all latent sites; those that lack are drawn given the others."""
        lacking = self._lacking(arrays)
        if purpose is not None:
            self._check_lacking([n for n in lacking if n not in self._discrete], purpose)
        latents = self._tensors(arrays)
        return self.model.completed(latents, seed) if lacking else latents

    def _as_observed(self, values: Mapping[str, Tensor]) -> Arrays:
        """Arrays of draws, integers where a discrete site was observed in integers."""
        arrays = {}
        for name, value in values.items():
            site = self.data.get(name)
            if site is not None and site.support.is_discrete and not site.dtype.is_floating_point:
                value = value.to(site.dtype)
            arrays[name] = to_array(value, name)
        return arrays


def _check_names(argument: str, names: Collection[str], sites: Mapping[str, Site]) -> None:
    if unknown := sorted(set(names) - set(sites)):
        raise ValueError(
            f"{argument} names {unknown}, but the observed sites of the model are {sorted(sites)}"
        )


def _refuse(reason: str, is_default: bool) -> None:
    """Warn of a likelihood that nobody asked for by name, else raise."""
    if not is_default:
        raise ValueError(f"log_likelihood cannot be computed: {reason}")
    warnings.warn(
        f"log_likelihood lacks sites, and so will LOO: {reason}. To skip it, pass "
        "log_likelihood=False",
        stacklevel=4,
    )


@contextmanager
def _explained(needs: Sequence[str]) -> Iterator[None]:
    """Say which arguments ask for the model where it fails."""
    try:
        yield
    except Exception as error:
        alternative = " and ".join(f"{name}=False" for name in needs)
        raise ValueError(
            f"model cannot be evaluated ({type(error).__name__}: {error}); pass its arguments "
            f"after posterior, or pass {alternative} to convert without it"
        ) from error
