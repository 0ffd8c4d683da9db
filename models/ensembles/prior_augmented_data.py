"""Prior augmented data: predictions far from the data return to a prior of the labels."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from pyro_ext._lib import checks
from pyro_ext._lib.hints import refuses_moved
from pyro_ext.inference.training import Trainer, TrainingDiverged
from pyro_ext.nn import MLP
from pyro_ext.random import fresh_seed, seeded

_ADAM = partial(torch.optim.Adam, lr=1e-3)


class PseudoInputGenerator(nn.Module):
    """Makes pseudo-inputs from noise and a minibatch, which it treats as a set.

    An encoder is averaged over the rows, so that their order does not matter. A decoder makes a
    pseudo-input from the average and noise.

    :param event_shape: shape of an input, or the number of its features.
    :param int hidden_size: width of all layers, and size of the noise.
    :param bounds: smallest and largest value of an input, such as a pixel; ``None`` for unbounded
        inputs, for which the generator is trained with a penalty outside of a box.
    :param float box: size of a feature above which the penalty applies.
    :param float box_slope: slope of the penalty.
    :raises ValueError: for sizes or bounds out of range.

    Example::

        >>> PseudoInputGenerator(3)(torch.randn(5, 3), torch.randn(5, 64)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        event_shape: int | tuple[int, ...],
        hidden_size: int = 64,
        bounds: tuple[float, float] | None = None,
        *,
        box: float = 4.0,
        box_slope: float = 1.0,
    ) -> None:
        super().__init__()
        if isinstance(event_shape, tuple | list):
            self.event_shape = checks.as_size("event_shape", event_shape)
        else:
            self.event_shape = torch.Size([checks.integer("event_shape", event_shape, 1)])
        if not self.event_shape or not self.event_shape.numel():
            raise ValueError(f"event_shape must have sizes >= 1, got {event_shape!r:.80}")
        self.hidden_size = checks.integer("hidden_size", hidden_size, 1)
        if bounds is not None:
            if not isinstance(bounds, tuple | list) or len(bounds) != 2:
                raise TypeError(f"bounds must be two numbers or None, got {checks.shown(bounds)}")
            checks.number("bounds", bounds[1], above=checks.number("bounds", bounds[0]))
        self.bounds = bounds
        self.box = checks.number("box", box, least=0)
        self.box_slope = checks.number("box_slope", box_slope, least=0)
        size = self.event_shape.numel()
        self.encoder = MLP(size, [hidden_size], hidden_size, nn.ReLU)
        self.decoder = MLP(2 * hidden_size, [hidden_size], size, nn.ReLU)

    def forward(self, inputs: Tensor, noise: Tensor) -> Tensor:
        """Make pseudo-inputs.

        :param Tensor inputs: a minibatch. **Shape:** ``(n, *event_shape)``.
        :param Tensor noise: **Shape:** ``(m, hidden_size)``.
        :returns: **Shape:** ``(m, *event_shape)``.
        """
        shape = ", ".join(map(str, self.event_shape))
        like = next(self.parameters())
        inputs = checks.as_tensor("inputs", inputs, f"(n, {shape})", finite=True, like=like)
        noise = checks.as_tensor("noise", noise, f"(m, {self.hidden_size})", finite=True, like=like)
        code = self.encoder(inputs.flatten(1)).mean(0)
        made: Tensor = self.decoder(torch.cat([code.expand(len(noise), -1), noise], -1))
        if self.bounds is not None:
            low, high = self.bounds
            made = low + (high - low) * made.sigmoid()
        return made.reshape(-1, *self.event_shape)


def prior_weight(pseudo_inputs: Tensor, inputs: Tensor, lengthscale: float) -> Tensor:
    r"""Compute the weight of the prior at pseudo-inputs: 0 on the data, approaching 1 far away.

    .. math:: \lambda(\tilde x) = 1 - \exp(-\min_i \|\tilde x - x_i\|^2 / (2 \ell^2 d))

    :param Tensor pseudo_inputs: **Shape:** ``(m, *event)``.
    :param Tensor inputs: **Shape:** ``(n, *event)``.
    :param float lengthscale: :math:`\ell`, per feature; there are :math:`d` features.
    :returns: **Shape:** ``(m,)``.

    Example::

        >>> prior_weight(torch.tensor([[0.0], [1.0]]), torch.zeros(3, 1), lengthscale=1.0)
        tensor([0.0000, 0.3935])
    """
    checks.number("lengthscale", lengthscale, above=0)
    pseudo_inputs = checks.as_tensor("pseudo_inputs", pseudo_inputs, "(m, ...)", finite=True)
    event = ", ".join(map(str, pseudo_inputs.shape[1:]))
    inputs = checks.as_tensor("inputs", inputs, f"(n, {event})", like=pseudo_inputs, finite=True)
    return 1 - _nearness(pseudo_inputs, inputs, lengthscale).amax(1)


@refuses_moved
class PriorAugmentedELBO(ELBO):
    r"""An ELBO that also pulls predictions far from the data to a prior of the labels [1].

    A generator learns to make pseudo-inputs :math:`\tilde x` where the model is confident but there
    are no data. They go through the model in place of the inputs, with latent sites as the guide
    draws them. The loss gets an additional term, on the scale of the likelihood,

    .. math:: w \sum_j \lambda(\tilde x_j)\, KL(p(y \mid \tilde x_j) \,\|\, p(y))

    with :math:`\lambda` from :func:`prior_weight`. Each loss with gradients first trains the
    generator by one step, on the mean entropy of the predictions, ``gamma`` times the mean of
    :math:`1 - \lambda`, its own penalty outside of a box, and ``repulsion`` times the closeness of
    pseudo-inputs to each other.

    Only the abstract and the first pages of the paper were available. They describe the generator,
    which seeks confident predictions far from the data, and the pull of these to the prior of the
    labels under a condition. The set encoder, :math:`\lambda`, the terms of the generator's loss
    and all constants are a reconstruction. Repulsion is an addition; without it, the generator
    collapses to a single point if there are few features.

    The constants are for standardized inputs. If classes are close together compared to the
    ``lengthscale``, as those of two moons are, the border between them is blurred, too; choose a
    smaller ``weight`` or ``lengthscale`` on held-out data.

    The model takes the inputs first, and has a site with a row for each of them. The object has its
    own randomness: with ``weight=0``, a model is trained as without it, bit for bit, also with
    dropout. If model or guide is a module, buffers such as batch normalization statistics only see
    the data. For an ensemble, use one object for each member.

    :param PseudoInputGenerator generator: the generator, which is trained in place.
    :param torch.distributions.Distribution prior: prior of a label, in the family of the site.
    :param pyro.infer.ELBO elbo: the loss to which the term is added, by default
        :class:`~pyro.infer.Trace_ELBO`.
    :param str site: name of the site of the labels, required if the model has other sites that
        the guide lacks.
    :param float lengthscale: :math:`\ell`, in units of a feature.
    :param float weight: :math:`w`.
    :param float gamma: strength that keeps the generator away from the data.
    :param float repulsion: strength that keeps pseudo-inputs away from each other; use 0 for
        images.
    :param Tensor reference: inputs from which to measure distances. By default the minibatch, for
        which a pseudo-input may be far although it is close to a row of another minibatch.
        **Shape:** ``(n, *event)``.
    :param Callable optimizer: optimizer of the generator, as for
        :class:`~pyro_ext.inference.Trainer`.
    :param int seed: seed of noise and of everything that predictions at pseudo-inputs draw.
    :raises TypeError: for arguments of a wrong type.
    :raises ValueError: for numbers out of range.

    [1] J. Willette, J. Lee, S. J. Hwang (2021),
    Improving uncertainty calibration via prior augmented data.

    Example::

        >>> network = torch.nn.Linear(2, 3)
        >>> def model(x, y=None):
        ...     pyro.module("network", network)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("obs", dist.Categorical(logits=network(x)), obs=y)
        >>> elbo = PriorAugmentedELBO(
        ...     PseudoInputGenerator(2), dist.Categorical(torch.ones(3)), seed=0)
        >>> svi = pyro.infer.SVI(model, lambda x, y: None, pyro.optim.Adam({"lr": 0.01}), elbo)
        >>> svi.step(torch.randn(8, 2), torch.arange(8) % 3) > 0
        True
    """

    def __init__(
        self,
        generator: PseudoInputGenerator,
        prior: Distribution,
        *,
        elbo: ELBO | None = None,
        site: str | None = None,
        lengthscale: float = 0.5,
        weight: float = 1.0,
        gamma: float = 1.0,
        repulsion: float = 5.0,
        reference: Tensor | None = None,
        optimizer: Callable[[list[Any]], torch.optim.Optimizer] = _ADAM,
        seed: int | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        wanted = "a PseudoInputGenerator"
        checks.instance("generator", generator, PseudoInputGenerator, wanted)
        checks.instance("prior", prior, Distribution, "a distribution of a label")
        checks.optional(checks.instance, "elbo", elbo, ELBO, "an ELBO or None")
        checks.optional(checks.instance, "site", site, str, "the name of a site")
        self.generator, self.prior, self.site = generator, prior, site
        self.elbo: Any = Trace_ELBO() if elbo is None else elbo
        self.lengthscale = checks.number("lengthscale", lengthscale, above=0)
        self.weight = checks.number("weight", weight, least=0)
        self.gamma = checks.number("gamma", gamma, least=0)
        self.repulsion = checks.number("repulsion", repulsion, least=0)
        if reference is not None:
            shape = ", ".join(map(str, generator.event_shape))
            reference = checks.as_tensor("reference", reference, f"(n, {shape})", finite=True)
        self.reference = reference
        seed = fresh_seed(seed)
        self._trainer = Trainer(generator, optimizer)
        self._stream = torch.Generator().manual_seed(seed)

    @property
    def stateful(self) -> list[Any]:
        """State of the training, for ``stateful`` of a :class:`~pyro_ext.inference.Trainer`."""
        return [self.generator, self._trainer.optimizer, self._stream]

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the loss, differentiable in the model and the guide, after a generator step.

        :param Callable model: a model whose first argument is the inputs. **Shape:**
            ``(n, *event)``.
        :param Callable guide: takes the arguments of the model.
        :param args: inputs, labels and further arguments.
        :returns: a scalar.
        :raises TrainingDiverged: if the loss, or the loss or gradient of the generator, is not
            finite.
        :raises ValueError: without the site, for inputs of another shape, or if the divergence
            from the prior is not known.
        """
        _check_inputs(args)
        value: Tensor = self.elbo.differentiable_loss(model, guide, *args, **kwargs)
        _check_loss("elbo", float(value.detach()))
        return value + self._added(model, guide, args, kwargs)

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Compute the loss as a number, without training the generator."""
        _check_inputs(args)
        value: float = self.elbo.loss(model, guide, *args, **kwargs)
        with torch.no_grad(), self._undisturbed(model, guide):
            return value + float(self._regularizer(model, guide, args, kwargs))

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Compute the loss as a number, and gradients of the parameters, after a generator step."""
        _check_inputs(args)
        with poutine.trace(param_only=True) as seen:
            value: float = self.elbo.loss_and_grads(model, guide, *args, **kwargs)
            try:
                _check_loss("elbo", value)
                added = self._added(model, guide, args, kwargs)
            except TrainingDiverged:  # nor is what it has left at the parameters
                values: list[Any] = [site["value"] for site in seen.trace.nodes.values()]
                for parameter in values:
                    parameter.unconstrained().grad = None
                raise
        if added.requires_grad:
            added.backward()
        return value + float(added.detach())

    def _added(
        self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Tensor:
        """The term that is added, after a step of the generator."""
        with self._undisturbed(model, guide):
            self._trainer.step(self._generator_loss, model, guide, args, kwargs)
            added = self._regularizer(model, guide, args, kwargs)
        _check_loss(f"divergence from the prior {self.prior}", float(added.detach()))
        return added

    def _generator_loss(
        self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, list[Tensor]]:
        """Compute the generator's loss, and its gradients in the generator's parameters only."""
        made = self._made(args[0])
        prediction, _ = self._prediction(model, guide, made, args, kwargs)
        near = _nearness(made, self._data(args[0]), self.lengthscale).amax(1)
        loss = prediction.entropy().mean() + self.gamma * near.mean()
        if self.generator.bounds is None:
            outside = (made.abs() - self.generator.box).relu().mean()
            loss = loss + self.generator.box_slope * outside
        if self.repulsion and len(made) > 1:
            others = _nearness(made, made, self.lengthscale)
            pairs = others.numel() - len(made)
            loss = loss + self.repulsion * (others.sum() - others.trace()) / pairs
        return loss, list(torch.autograd.grad(loss, list(self.generator.parameters())))

    def _regularizer(
        self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Tensor:
        """The divergences from the prior, which neither move pseudo-inputs nor their weights."""
        with torch.no_grad():
            made = self._made(args[0])
            far = prior_weight(made, self._data(args[0]), self.lengthscale)
        prediction, scale = self._prediction(model, guide, made, args, kwargs)
        try:
            divergence = kl_divergence(prediction, self.prior)
        except (NotImplementedError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"prior must be one that {prediction} of the site has a divergence "
                f"from, got {self.prior}: {error}"
            ) from error
        total: Tensor = (scale * far * divergence).sum()
        return self.weight * total

    def _made(self, inputs: Tensor) -> Tensor:
        noise = torch.randn(
            len(inputs), self.generator.hidden_size, device=inputs.device, dtype=inputs.dtype
        )
        made: Tensor = self.generator(inputs, noise)
        return made

    def _data(self, inputs: Tensor) -> Tensor:
        return inputs if self.reference is None else self.reference

    def _prediction(
        self,
        model: Any,
        guide: Any,
        made: Tensor,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> tuple[Any, Any]:
        """Distribution of the labels at pseudo-inputs, and the scale of the likelihood."""
        drawn = poutine.trace(guide).get_trace(made, *args[1:], **kwargs)
        trace = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(
            made, *args[1:], **kwargs
        )
        names = [
            name
            for name, node in trace.nodes.items()
            if node["type"] == "sample"
            and name not in drawn.nodes
            and not (site_is_factor(node) or site_is_subsample(node))
            and not node["infer"].get("_deterministic")
        ]
        site = names[0] if self.site is None and len(names) == 1 else self.site
        if site not in names:
            raise ValueError(f"site must be one of the model's, {names}, got {site!r}")
        found = trace.nodes[site]
        if found["fn"].batch_shape[-1:] != (len(made),):
            raise ValueError(
                f"site must have the batch shape (..., {len(made)}), a row for each input, got "
                f"{tuple(found['fn'].batch_shape)} of {site!r}: give the model minibatches "
                "rather than let it draw them, and use to_event for other dimensions"
            )
        return found["fn"], found["scale"]

    @contextmanager
    def _undisturbed(self, *owners: Any) -> Iterator[None]:
        """Draw from the elbo's own stream, and leave buffers as they are."""
        modules = [one for one in owners if isinstance(one, nn.Module)]
        buffers = [buffer for module in modules for buffer in module.buffers()]
        kept = [buffer.clone() for buffer in buffers]
        try:
            with seeded(int(torch.randint(2**31, (), generator=self._stream, device="cpu"))):
                yield
        finally:
            for buffer, values in zip(buffers, kept, strict=True):
                buffer.data.copy_(values)  # as data: a graph may hold it

    def _get_trace(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError("the elbo that is added to takes the traces")


def _check_inputs(args: tuple[Any, ...]) -> None:
    if not args or not isinstance(args[0], Tensor):
        found = checks.shown(args[0]) if args else "nothing"
        raise TypeError(f"args must begin with the inputs, a tensor, got {found}")


def _check_loss(what: str, value: float) -> None:
    if not math.isfinite(value):
        raise TrainingDiverged(
            f"the {what} is {value}, and no step is taken. Look for labels outside of the support "
            "of their site and of the prior, for data that are not finite or huge, or use a "
            "smaller learning rate"
        )


def _nearness(first: Tensor, second: Tensor, lengthscale: float) -> Tensor:
    """A kernel of the distance of each pair, 1 where they are the same point."""
    distances = torch.cdist(
        first.flatten(1), second.flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
    )
    return torch.exp(-distances.square() / (2 * lengthscale**2 * first[0].numel()))
