"""Tasks on which samplers for Bayesian networks are trained and compared."""

from collections.abc import Sequence

from torch import Tensor

from pyro_ext._lib import checks
from pyro_ext.inference import Task
from pyro_ext.nn import MLP, BayesianClassifier, BayesianModule

_SMALLEST_SCALE = 1e-6
_LARGEST_INPUT = 3.0
_WEIGHT_DECAY = 5e-4


def classification_task(
    inputs: Tensor,
    labels: Tensor,
    num_training: int,
    *,
    hidden_features: Sequence[int] = (16,),
    prior_scale: float | None = None,
    name: str = "classification",
) -> Task:
    r"""Make a task of a Bayesian multilayer perceptron on labeled data.

    The first rows are training data, and the rest is held out. Features are standardized by the
    training rows and clipped at three standard deviations. Minibatches have 64 rows.

    :param Tensor inputs: **Shape:** ``(n, num_features)``.
    :param Tensor labels: classes from zero on. **Shape:** ``(n,)``.
    :param int num_training: number of training rows, :math:`N`.
    :param Sequence hidden_features: width of each hidden layer.
    :param float prior_scale: standard deviation of the weights; by default
        :math:`1 / \sqrt{N \lambda}`, which corresponds to a weight decay of
        :math:`\lambda = 5 \cdot 10^{-4}` on the mean loss.
    :param str name: name of the task in messages.

    Example::

        >>> from pyro_ext.datasets import load_wine
        >>> wine = load_wine()
        >>> task = classification_task(wine.train_inputs, wine.train_targets, 90, name="wine")
        >>> [len(argument) for argument in task.args]
        [90, 90]
    """
    inputs = checks.as_tensor("inputs", inputs, "(n, num_features)", finite=True)
    labels = checks.as_tensor("labels", labels, f"({len(inputs)},)", kind="integers")
    if not bool((labels >= 0).all()):
        raise ValueError(f"labels must be classes from zero on, got {labels.tolist()!r:.80}")
    checks.instance("name", name, str, "a string")
    hidden_features = checks.sequence("hidden_features", hidden_features, "a list of widths", 0)
    checks.optional(checks.number, "prior_scale", prior_scale, above=0)
    checks.integer("num_training", num_training, 2)
    if num_training >= len(inputs):
        raise ValueError(
            f"num_training must leave rows to hold out, got {num_training} of {len(inputs)}"
        )
    training, held_out = inputs[:num_training], inputs[num_training:]
    scale = training.std(0).clamp(min=_SMALLEST_SCALE)

    def standardized(values: Tensor) -> Tensor:
        return ((values - training.mean(0)) / scale).clamp(-_LARGEST_INPUT, _LARGEST_INPUT)

    network = MLP(inputs.shape[1], hidden_features, int(labels.max()) + 1)
    if prior_scale is None:
        prior_scale = (num_training * _WEIGHT_DECAY) ** -0.5
    classifier = BayesianClassifier(BayesianModule(network, prior_scale), 64)
    new_inputs, new_labels = standardized(held_out), labels[num_training:]
    return Task(
        classifier,
        (standardized(training), labels[:num_training]),
        lambda samples: classifier.log_likelihood(samples, new_inputs, new_labels),
        name=name,
    )
