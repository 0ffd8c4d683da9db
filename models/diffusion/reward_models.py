r"""Rewards of images, learned from human feedback: labels or rankings.

People label each image by whether it shows a concept, or rank some images by how much they show of
it [1]. The reward is a network on given features. Training stops when held-out feedback is
predicted worse. The last layer then gets a Gaussian posterior, which measures the uncertainty of
the reward.

[1] S. Kim, S. Jung, B. Kim, M. Choi, J. Shin, J. Lee (2024), Safeguard text-to-image diffusion
models with human feedback inversion.
"""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, mse_loss

from pyro_ext._lib import checks
from pyro_ext._lib.progress import progress_bar
from pyro_ext.inference import Trainer
from pyro_ext.inference.laplace import Gaussian, gaussian_at_mode
from pyro_ext.inference.training.outcome import warn_of_validation
from pyro_ext.inference.training.trainer import Optimizer
from pyro_ext.nn import MLP
from pyro_ext.potential import Potential
from pyro_ext.random import seeded

_ADAM = partial(torch.optim.Adam, lr=1e-3)
_INTERVAL = 10
_LEAST_NOISE = 0.01


class _Pairs(NamedTuple):
    """Indices of the images that are preferred and of the others, and weights of the pairs."""

    first: Tensor
    second: Tensor
    weight: Tensor


class _LastLayer(NamedTuple):
    """Mean units under the images of the feedback, the noise of labels, and the posterior."""

    center: Tensor
    noise: float | None
    posterior: Gaussian


class RewardFit(NamedTuple):
    """Quality of a reward on held-out feedback.

    The same feedback decides when training stops, so new feedback may be predicted slightly worse.

    :param float accuracy: fraction of labels predicted correctly, or of pairs ordered correctly.
    :param float baseline: accuracy of the best constant reward: the fraction of the larger class,
        or one half.
    :param int num_steps: number of training steps up to the network that was kept.
    :param losses: losses on held-out feedback, before training and at every tenth step.
    """

    accuracy: float
    baseline: float
    num_steps: int
    losses: list[float]


def is_ranking(feedback: Any) -> bool:
    """Tell whether feedback holds rankings (lists of images) rather than a label for each image."""
    entries = checks.sequence(
        "feedback", feedback, "labels of images, or rankings of their indices"
    )
    return all(np.ndim(entry) == 1 for entry in entries)


def bradley_terry_loss(rewards: Tensor, rankings: Sequence[Sequence[int]]) -> Tensor:
    r"""Loss of rewards given rankings, by the Bradley-Terry model of each pair [2].

    .. math:: -\frac1{M^2} \sum_{i \succ j} \log \operatorname{sigmoid}(r_i - r_j)

    over all pairs of a ranking of :math:`M` images, averaged over rankings.

    :param Tensor rewards: :math:`r`. **Shape:** ``(num_images,)``.
    :param rankings: lists of indices, from the image that shows most to the one that shows least.
    :returns: a scalar.
    :raises ValueError: for unknown indices, or indices that occur twice in a ranking.

    [2] R. A. Bradley, M. E. Terry (1952), Rank analysis of incomplete block designs.

    Example::

        >>> bradley_terry_loss(torch.tensor([2.0, 1.0, 0.0]), [[0, 1, 2]])
        tensor(0.0837)
    """
    rewards = checks.as_tensor("rewards", rewards, "(num_images,)", finite=True)
    return _pair_loss(rewards, _as_pairs(rankings, len(rewards), rewards.device))


class RewardModel:
    r"""Reward of images, :math:`r(x) = w^\top h(f(x)) + b`, with a posterior of the last layer.

    Features are standardized by the images of the feedback. The network is created when it is first
    trained.

    :param features: maps images to features and is not trained, for example the image tower of
        CLIP, the penultimate layer of a classifier, or principal components. **Shape:**
        ``(num_images, *event)`` to ``(num_images, num_features)``.
    :param hidden: widths of the layers :math:`h`; none make a linear model.
    :param float held_out: fraction of the feedback that is held out.
    :param int num_steps: largest number of training steps.
    :param int patience: number of steps without a better held-out loss after which training ends.
        The best network so far is kept; there is a warning if none is better than a constant.
    :param optimizer: as for :class:`~pyro_ext.inference.Trainer`.
    :raises TypeError: for arguments of a wrong type.
    :raises ValueError: for numbers out of range.

    Example::

        >>> images = torch.randn(100, 1, 2, 2)
        >>> reward = RewardModel(lambda x: x.flatten(1), hidden=[8])
        >>> fit = reward.fit_binary(images, images[:, 0, 0, 0] > 0, seed=0, progress=False)
        >>> fit.accuracy > fit.baseline
        True
        >>> predicted = reward.predictive(images)  # a Normal for each image
        >>> predicted.mean.shape, bool((predicted.stddev > 0).all())
        (torch.Size([100]), True)
    """

    def __init__(
        self,
        features: Callable[[Tensor], Tensor],
        hidden: Sequence[int] = (64,),
        *,
        held_out: float = 0.2,
        num_steps: int = 1000,
        patience: int = 100,
        optimizer: Optimizer = _ADAM,
    ) -> None:
        checks.function("features", features, "a function of images")
        widths = checks.sequence("hidden", hidden, "widths of layers", least=0)
        checks.function("optimizer", optimizer, "a function that makes an optimizer of tensors")
        self.features = features
        self.hidden = [checks.integer("hidden", width, 1) for width in widths]
        self.held_out = checks.number("held_out", held_out, above=0, below=1)
        self.num_steps = checks.integer("num_steps", num_steps, 1)
        self.patience = checks.integer("patience", patience, 1)
        self.optimizer = optimizer
        self.network: nn.Sequential | None = None
        """From features to the reward, once it was trained."""
        self._last: _LastLayer | None = None

    def fit_binary(
        self, images: Tensor, labels: Any, *, seed: int | None = None, progress: bool = True
    ) -> RewardFit:
        r"""Learn from labels, by their squared error :math:`(r(x) - y)^2`.

        :param Tensor images: **Shape:** ``(num_images, *event)``.
        :param labels: one if an image shows the concept, and zero otherwise; some of each class are
            held out. **Shape:** ``(num_images,)``.
        :param int seed: seed of the network and of what is held out.
        :param bool progress: whether to show a progress bar.
        :raises ValueError: for labels of one class only, or other labels than zero and one.
        :raises TrainingDiverged: if something is not finite.
        """
        images = _as_images(images)
        labels = _as_labels(labels, images)
        with seeded(seed):
            parts = [_split(torch.nonzero(labels == y)[:, 0], self.held_out) for y in (0, 1)]
        kept, out = (torch.cat(part) for part in zip(*parts, strict=True))

        def loss(rewards: Tensor, rows: Tensor = kept) -> Tensor:
            return mse_loss(rewards[rows], labels[rows].to(rewards))

        losses, step, rewards = self._fit(images, loss, partial(loss, rows=out), seed, progress)
        constant = labels[kept].mean().expand(len(labels))
        best = min(losses[1:] or losses)
        _check_fit("labels", best, float(loss(constant, out)))
        accuracy = ((rewards[out] > 0.5) == (labels[out] > 0.5)).double().mean()
        rate = float(labels[out].mean())
        self._infer(images, labels, max(math.sqrt(best), _LEAST_NOISE))
        return RewardFit(float(accuracy), max(rate, 1.0 - rate), step, losses)

    def fit_ranking(
        self,
        images: Tensor,
        rankings: Sequence[Sequence[int]],
        *,
        seed: int | None = None,
        progress: bool = True,
    ) -> RewardFit:
        """Learn from rankings, by :func:`bradley_terry_loss`; only differences of rewards matter.

        :param Tensor images: **Shape:** ``(num_images, *event)``.
        :param rankings: lists of at least two indices of images, from the one that shows most of
            the concept to the one that shows least; some lists are held out.
        :param int seed: seed of the network and of what is held out.
        :param bool progress: whether to show a progress bar.
        :raises ValueError: for fewer than two rankings, or unknown indices.
        :raises TrainingDiverged: if something is not finite.
        """
        images = _as_images(images)
        as_pairs = partial(_as_pairs, num_images=len(images), device=images.device)
        pairs, rankings = as_pairs(rankings), list(rankings)
        if len(rankings) < 2:
            raise ValueError(f"rankings must be at least two, one to be held out, got {rankings}")
        with seeded(seed):
            parts = _split(torch.arange(len(rankings)), self.held_out)
        kept, out = (as_pairs([rankings[row] for row in part]) for part in parts)
        losses, step, rewards = self._fit(
            images, partial(_pair_loss, pairs=kept), partial(_pair_loss, pairs=out), seed, progress
        )
        constant = float(_pair_loss(torch.zeros_like(rewards), out))
        best = min(losses[1:] or losses)
        _check_fit("rankings", best, constant)
        accuracy = (rewards[out.first] > rewards[out.second]).double().mean()
        self._infer(images, pairs, None)
        return RewardFit(float(accuracy), 0.5, step, losses)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Rewards of images, by the network.

        :param Tensor images: **Shape:** ``(num_images, *event)``.
        :returns: **Shape:** ``(num_images,)``.
        :raises ValueError: before it was trained.
        """
        rewards: Tensor = self._trained()(self._known_features(images))[:, 0]
        return rewards

    def last_layer(self, images: Tensor, feedback: Any) -> Callable[[], None]:
        """Make a Pyro model of feedback in which only the last layer of the network is unknown.

        Its sites are ``weight``, for the units of the last hidden layer minus their means, and with
        labels ``bias``. The noise of labels is normal, and as large as the errors on held-out
        labels. The observed site is ``label`` or, for each pair of a ranking, ``preference``, which
        is one. Run any kernel or guide on it.

        :param Tensor images: **Shape:** ``(num_images, *event)``.
        :param feedback: labels or rankings of these images, of the kind that trained the network.
        :returns: the model, a function without arguments, in double precision.
        :raises ValueError: before the network is trained.
        """
        units, last = self._units(images)
        if is_ranking(feedback) != (last.noise is None):
            kind = "rankings" if last.noise is None else "labels"
            raise ValueError(f"feedback must be {kind}, as the network was trained by")
        if last.noise is None:
            return _last_layer(units, _as_pairs(feedback, len(units), units.device), None)
        return _last_layer(units, _as_labels(feedback, units), last.noise)

    def predictive(self, images: Tensor) -> dist.Normal:
        """Predict rewards under the posterior of the last layer, a Gaussian at its mode.

        After :meth:`fit_ranking`, they are differences from the mean reward of the rated images.

        :param Tensor images: **Shape:** ``(num_images, *event)``.
        :returns: a normal distribution for each image, without the noise of labels.
        :raises ValueError: before the network is trained.
        """
        units, last = self._units(images)
        if last.noise is not None:
            units = torch.cat([units, torch.ones_like(units[:, :1])], 1)
        deviation = torch.linalg.vector_norm(units @ last.posterior.scale_tril, dim=1)
        return dist.Normal(units @ last.posterior.mode, deviation)

    def _fit(
        self,
        images: Tensor,
        loss: Callable[[Tensor], Tensor],
        held_out_loss: Callable[[Tensor], Tensor],
        seed: int | None,
        progress: bool,
    ) -> tuple[list[float], int, Tensor]:
        """Train until what is held out gets worse; its losses, the best step, and rewards there."""
        checks.boolean("progress", progress)
        found = self._features(images)
        scale = nn.BatchNorm1d(found.shape[1], eps=0.0, affine=False)  # keeps what it is given here
        variance, scale.running_mean = torch.var_mean(found, 0, correction=0)
        scale.running_var = variance.where(variance > 0, 1.0)
        with seeded(seed):
            network = nn.Sequential(scale, *MLP(found.shape[1], self.hidden, 1)).to(found).eval()
        trainer = Trainer(network, self.optimizer, seed=seed)
        losses, best, kept = [], 0, copy.deepcopy(network.state_dict())
        with torch.no_grad():
            losses.append(float(held_out_loss(network(found)[:, 0])))
        bar = progress_bar(total=self.num_steps, desc="reward", unit="step", disable=not progress)
        with bar:
            while (step := trainer.num_steps) < self.num_steps and step - best < self.patience:
                wanted = min(step + _INTERVAL, self.num_steps)
                trainer.run(lambda: loss(network(found)[:, 0]), wanted, progress=False)
                if trainer.num_steps < wanted:  # interrupted
                    break
                bar.update(wanted - step)
                with torch.no_grad():
                    losses.append(float(held_out_loss(network(found)[:, 0])))
                if losses[-1] == min(losses[1:]):  # an untrained network may be right by luck
                    best, kept = wanted, copy.deepcopy(network.state_dict())
        network.load_state_dict(kept)
        self.network = network.requires_grad_(False)
        with torch.no_grad():
            return losses, best, network(found)[:, 0]

    def _infer(self, images: Tensor, feedback: Tensor | _Pairs, noise: float | None) -> None:
        """Find the Gaussian at the mode of the last layer; with labels it is the posterior."""
        units = self._trained()[:-1](self._features(images)).double()
        center = units.mean(0)
        potential = Potential(_last_layer(units - center, feedback, noise))
        start = center.new_zeros(1, potential.layout.size)
        self._last = _LastLayer(center, noise, gaussian_at_mode(potential, start))

    def _trained(self) -> nn.Sequential:
        if self.network is None:
            raise ValueError("reward must be trained first: call fit_binary or fit_ranking")
        return self.network

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        """Features of images, checked."""
        with checks.named_in_errors("images", images):
            found = self.features(images)
        if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(images):
            raise ValueError(
                f"features must return the shape ({len(images)}, num_features), "
                f"got {checks.shown(found)}"
            )
        return checks.as_tensor("features", found, finite=True)

    def _known_features(self, images: Any) -> Tensor:
        """Features of images, as many as those of the training had."""
        wanted: Any = self._trained()[0].num_features
        found = self._features(_as_images(images)).to(next(self._trained().parameters()))
        if found.shape[1] != wanted:
            raise ValueError(
                f"images must have {wanted} features, as those of the training, got "
                f"{found.shape[1]}"
            )
        return found

    def _units(self, images: Any) -> tuple[Tensor, _LastLayer]:
        """Return the centered inputs of the Bayesian last layer, and the layer itself."""
        units: Tensor = self._trained()[:-1](self._known_features(images)).double()
        assert self._last is not None
        return units - self._last.center, self._last


def _last_layer(
    units: Tensor, feedback: Tensor | _Pairs, noise: float | None
) -> Callable[[], None]:
    """Pyro model of pairs, or of labels with a noise."""
    width, zero = units.shape[1], units.new_zeros(())

    def model() -> None:
        prior = dist.Normal(zero, 1.0 / math.sqrt(width)).expand([width]).to_event(1)
        weight = pyro.sample("weight", prior)
        if isinstance(feedback, _Pairs):
            logits = (units[feedback.first] - units[feedback.second]) @ weight
            with pyro.plate("pairs", len(logits)):
                preferred = dist.Bernoulli(logits=logits)
                pyro.sample("preference", preferred, obs=torch.ones_like(logits))
        else:
            assert noise is not None
            bias = pyro.sample("bias", dist.Normal(zero, 1.0))
            with pyro.plate("images", len(units)):
                label = dist.Normal(units @ weight + bias, noise)
                pyro.sample("label", label, obs=feedback.to(units))

    return model


def _check_fit(feedback: str, best: float, constant: float) -> None:
    what = f"the least loss on {feedback} that were held out"
    warn_of_validation(what, best, constant, "that of a constant reward is", stacklevel=3)


def _pair_loss(rewards: Tensor, pairs: _Pairs) -> Tensor:
    gaps = rewards[pairs.first] - rewards[pairs.second]
    loss: Tensor = -torch.dot(pairs.weight.to(gaps), logsigmoid(gaps))
    return loss


def _split(rows: Tensor, held_out: float) -> tuple[Tensor, Tensor]:
    """Rows that stay and rows that are held out, at least one of each."""
    number = min(max(1, round(held_out * len(rows))), len(rows) - 1)
    order = rows[torch.randperm(len(rows)).to(rows.device)]
    return order[number:], order[:number]


def _as_images(images: Any) -> Tensor:
    return checks.as_tensor("images", images, "(num_images, ...)", finite=True)


def _as_labels(labels: Any, images: Tensor) -> Tensor:
    """Labels of all images, of both classes."""
    found = checks.as_tensor("labels", labels, f"({len(images)},)", finite=True).to(images.device)
    if strange := sorted({float(y) for y in found} - {0.0, 1.0}):
        raise ValueError(f"labels must be 0 or 1, got {strange[0]:g}")
    number = int(found.sum())
    if min(number, len(found) - number) < 2:
        raise ValueError(
            "labels must hold at least two images of each class, one to be held out, got "
            f"{number} with 1 and {len(found) - number} with 0"
        )
    return found.to(torch.get_default_dtype())


def _as_pairs(rankings: Any, num_images: int, device: torch.device) -> _Pairs:
    """All pairs of rankings of known images."""
    parts: list[_Pairs] = []
    lists = checks.sequence("rankings", rankings, "lists of indices of images, the first most")
    for entry in lists:
        row = checks.as_tensor("rankings", entry, "(num_ranked,)", kind="integers").to(device)
        if len(row) < 2 or len(row.unique()) < len(row):
            raise ValueError(
                f"rankings must each order two or more different images, got {row.tolist()!r:.80}"
            )
        if int(row.min()) < 0 or int(row.max()) >= num_images:
            raise ValueError(
                f"rankings must hold indices from 0 to {num_images - 1}, got {row.tolist()!r:.80}"
            )
        first, second = row[torch.triu_indices(len(row), len(row), 1, device=device)]
        each = 1.0 / (len(row) ** 2 * len(lists))
        parts.append(_Pairs(first, second, torch.full_like(first, each, dtype=torch.double)))
    return _Pairs(*map(torch.cat, zip(*parts, strict=True)))
