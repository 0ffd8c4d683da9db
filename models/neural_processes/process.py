"""Base of all neural processes: the Pyro model, predictions and their mixture."""

import pyro
import torch
from pyro.distributions import Categorical, Independent, MixtureSameFamily, Normal
from pyro.nn import PyroModule
from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext._lib.trained_range import warn_outside
from pyro_ext.models.neural_processes.batch import Batch, Points, check_inputs
from pyro_ext.random import fresh_seed


class NeuralProcess(PyroModule):
    """Base class of networks that map a context to a distribution of functions.

    Predictions outside the range of the training data are meaningless, and cause a warning.

    Subclasses define the latent variables: ``_draw`` draws them for a context, and ``_condition``
    returns predictions from a context and draws. Trainable subclasses have a ``loss``.

    :param int x_dim: number of features of an input.
    :param int y_dim: number of features of an output.
    """

    input_range: Tensor
    output_range: Tensor

    def __init__(self, x_dim: int, y_dim: int) -> None:
        super().__init__()
        self.x_dim = checks.integer("x_dim", x_dim, 1)
        self.y_dim = checks.integer("y_dim", y_dim, 1)
        ends = torch.tensor([[torch.inf], [-torch.inf]])  # of what it was trained on
        self.register_buffer("input_range", ends.repeat(1, self.x_dim))
        self.register_buffer("output_range", ends.repeat(1, self.y_dim))

    def forward(
        self,
        context_inputs: Tensor,
        context_outputs: Tensor,
        target_inputs: Tensor,
        target_outputs: Tensor | None = None,
        *,
        context_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
    ) -> Tensor:
        """Run the Pyro model, with plates ``"task"`` and ``"point"`` and the site ``"y"``.

        :param Tensor context_inputs: **Shape:** ``(num_tasks, num_context, x_dim)``.
        :param Tensor context_outputs: **Shape:** ``(num_tasks, num_context, y_dim)``.
        :param Tensor target_inputs: **Shape:** ``(num_tasks, num_target, x_dim)``.
        :param Tensor target_outputs: observed values of ``"y"``, if any. **Shape:**
            ``(num_tasks, num_target, y_dim)``.
        :param Tensor context_mask: booleans, false for padding. **Shape:** ``(num_tasks,
            num_context)``.
        :param Tensor target_mask: booleans, false for padding. **Shape:**
            ``(num_tasks, num_target)``.
        :returns: values of ``"y"``.
        """
        context = self._points("context", context_inputs, context_outputs, context_mask)
        check_inputs("target_inputs", target_inputs, self.x_dim)
        if target_outputs is not None:
            target = self._points("target", target_inputs, target_outputs, target_mask)
            target_inputs, target_outputs = target.inputs, target.outputs
        with pyro.plate("task", len(target_inputs), dim=-2):
            drawn = self._sites(context)
            with pyro.plate("point", target_inputs.shape[1], dim=-1):
                prediction = self._condition(context, target_inputs, drawn).to_event(1)
                if target_mask is not None:
                    prediction = prediction.mask(target_mask)
                outputs: Tensor = pyro.sample("y", prediction, obs=target_outputs)
        return outputs

    def loss(
        self, batch: Batch, num_samples: int = 1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Compute the training loss, averaged over tasks.

        :param Batch batch: the tasks.
        :param int num_samples: number of draws of random quantities.
        :param torch.Generator generator: generator for the draws; by default PyTorch's own.
        :returns: a scalar.
        """
        raise NotImplementedError(f"{type(self).__name__} has no loss: it cannot be trained")

    def predict(
        self,
        context_inputs: Tensor,
        context_outputs: Tensor,
        target_inputs: Tensor,
        num_samples: int = 50,
        *,
        context_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
    ) -> Normal:
        """Predict at inputs: a normal distribution at every point for each drawn function.

        :param Tensor context_inputs: **Shape:** ``(num_tasks, num_context, x_dim)``. The context
            may be empty; predictions are then meaningful if training also had empty contexts.
        :param Tensor context_outputs: **Shape:** ``(num_tasks, num_context, y_dim)``.
        :param Tensor target_inputs: **Shape:** ``(num_tasks, num_target, x_dim)``.
        :param int num_samples: number of functions.
        :param Tensor context_mask: booleans, false for padding. **Shape:** ``(num_tasks,
            num_context)``.
        :param torch.Generator generator: generator for the draws; by default PyTorch's own.
        :param int seed: seed of the draws, instead of a generator.
        :returns: **Shape:** ``(num_samples, num_tasks, num_target, y_dim)``.
        """
        like = next(self.parameters(), None)
        context_inputs = checks.as_tensor(
            "context_inputs", context_inputs, allow_empty=True, like=like
        )
        checks.integer("num_samples", num_samples, 1)
        context = self._points("context", context_inputs, context_outputs, context_mask)
        target_inputs = checks.as_tensor("target_inputs", target_inputs, finite=True, like=like)
        check_inputs("target_inputs", target_inputs, self.x_dim)
        self._warn_of_reach(context, target_inputs)
        if seed is not None:
            if generator is not None:
                raise ValueError(f"seed must be None beside a generator, got {seed!r}")
            generator = torch.Generator(target_inputs.device).manual_seed(fresh_seed(seed))
        drawn = self._draw(context, num_samples, generator)
        prediction = self._condition(context, target_inputs, drawn)
        shape = torch.Size((num_samples, *target_inputs.shape[:2], self.y_dim))
        expanded: Normal = prediction.expand(shape)
        return expanded

    @torch.no_grad()
    def note_range(self, batch: Batch) -> None:
        """Record the range of inputs and outputs in the tasks of a training step."""
        points = batch.points
        mask = points.presence()
        for ends, values in (
            (self.input_range, points.inputs[mask]),
            (self.output_range, points.outputs[mask]),
        ):
            if len(values):
                ends[0] = torch.minimum(ends[0], values.amin(0))
                ends[1] = torch.maximum(ends[1], values.amax(0))

    def _warn_of_reach(self, context: Points, target_inputs: Tensor) -> None:
        """Warn of points beyond those of the training, where there was one."""
        if bool((self.input_range[0] > self.input_range[1]).any()):
            return
        given = slice(None) if context.mask is None else context.mask
        warn_outside("context_inputs", context.inputs[given], self.input_range)
        warn_outside("context_outputs", context.outputs[given], self.output_range, slack=1.0)
        warn_outside("target_inputs", target_inputs, self.input_range)

    def posterior_predictive(
        self,
        context_inputs: Tensor,
        context_outputs: Tensor,
        target_inputs: Tensor,
        num_samples: int = 50,
        *,
        context_mask: Tensor | None = None,
        seed: int | None = None,
    ) -> MixtureSameFamily:
        """The predictive distribution at each point, an equal mixture over :meth:`predict`.

        Arguments are as for :meth:`predict`.

        :returns: a distribution with ``batch_shape`` ``(num_tasks, num_target)`` and
            ``event_shape`` ``(y_dim,)``.
        """
        prediction = self.predict(
            context_inputs,
            context_outputs,
            target_inputs,
            num_samples,
            context_mask=context_mask,
            seed=seed,
        )
        mean, scale = (part.movedim(0, -2) for part in (prediction.mean, prediction.stddev))
        weights = torch.ones(mean.shape[:-1], dtype=mean.dtype, device=mean.device)
        components = Independent(Normal(mean, scale, validate_args=False), 1)
        return MixtureSameFamily(Categorical(weights), components)

    def _condition(self, context: Points, target_inputs: Tensor, drawn: Tensor | None) -> Normal:
        """Predictions of a context and draws, whose leading dimensions they have."""
        raise NotImplementedError(f"{type(self).__name__} has no predictions: define _condition")

    def _draw(
        self, context: Points, num_samples: int, generator: torch.Generator | None
    ) -> Tensor | None:
        """Draw the latent variables ``num_samples`` times; by default there are none."""
        return None

    def _sites(self, context: Points) -> Tensor | None:
        """Draw the latent variables once, as sites of the Pyro model or by PyTorch's generator."""
        drawn = self._draw(context, 1, None)
        return None if drawn is None else drawn[0]

    def _points(
        self, name: str, inputs: Tensor, outputs: Tensor, mask: Tensor | None = None
    ) -> Points:
        """Points that are checked, with zeros for padding."""
        arguments = {f"{name}_inputs": inputs, f"{name}_outputs": outputs}
        like = next(self.parameters(), None)
        inputs, outputs = (
            checks.as_tensor(*pair, allow_empty=True, like=like) for pair in arguments.items()
        )
        options = {"kind": "booleans", "allow_empty": True}
        mask = checks.optional(checks.as_tensor, f"{name}_mask", mask, **options)
        points = Points(inputs, outputs, mask).check(name, self.x_dim, self.y_dim).filled()
        points.check_finite(name)
        return points


def points_log_prob(prediction: Normal, points: Points) -> Tensor:
    """Log likelihood of each point, zero for padding."""
    log_prob: Tensor = prediction.log_prob(points.outputs).sum(-1)
    return log_prob if points.mask is None else log_prob.masked_fill(~points.mask, 0)


def task_means(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of values over the points of each task, zero for tasks without points."""
    number = max(values.shape[-1], 1) if mask is None else mask.sum(-1).clamp(min=1)
    return values.sum(-1) / number


def log_mean_exp(values: Tensor) -> Tensor:
    """Logarithm of the mean of exponentials over the first dimension."""
    return values.logsumexp(0) - torch.tensor(float(len(values))).log().item()


def standard_normal(like: Tensor, *shape: int, generator: torch.Generator | None) -> Tensor:
    """Draws in the type and on the device of a tensor."""
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
