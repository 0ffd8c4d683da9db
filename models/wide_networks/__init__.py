"""Networks so wide that their limits are known: Gaussian process mixtures, and their training.

The networks have dependent weights [1], as Pyro models and in the limit; or unequal scales of nodes
[2], trained by gradients.

[1] H. Lee, F. Ayed, P. Jung, J. Lee, H. Yang, F. Caron (2023), Deep neural networks with dependent
weights: Gaussian process mixture limit, heavy tails, sparsity and compressibility.

[2] F. Caron, F. Ayed, P. Jung, H. Lee, J. Lee, H. Yang (2023), Over-parameterised shallow neural
networks with asymmetrical node scaling: global convergence guarantees and feature learning.

[3] Y. Cho, L. K. Saul (2009), Kernel methods for deep learning.

[4] C. M. Carvalho, N. G. Polson, J. G. Scott (2010), The horseshoe estimator for sparse signals.

[5] J. Piironen, A. Vehtari (2017), Sparsity information and regularization in the horseshoe and
other shrinkage priors.
"""

from pyro_ext.models.wide_networks.gaussian_processes import mixture_kernel, network_kernel
from pyro_ext.models.wide_networks.limit import (
    pruning_error,
    relu_covariance,
    sample_covariances,
    sample_outputs,
    square_correlation,
    step_covariance,
)
from pyro_ext.models.wide_networks.networks import (
    AsymmetricNetwork,
    DependentWeightNetwork,
    mean_tangent_gram,
    tangent_gram,
)
from pyro_ext.models.wide_networks.variances import (
    EqualJumps,
    NodeVariances,
    bernoulli_variances,
    beta_variances,
    equal_variances,
    horseshoe_variances,
    inverse_gamma_variances,
    measure_variances,
    regularized_horseshoe_variances,
    scaled_variances,
)

__all__ = [
    "AsymmetricNetwork",
    "DependentWeightNetwork",
    "EqualJumps",
    "NodeVariances",
    "bernoulli_variances",
    "beta_variances",
    "equal_variances",
    "horseshoe_variances",
    "inverse_gamma_variances",
    "mean_tangent_gram",
    "measure_variances",
    "mixture_kernel",
    "network_kernel",
    "pruning_error",
    "regularized_horseshoe_variances",
    "relu_covariance",
    "sample_covariances",
    "sample_outputs",
    "scaled_variances",
    "square_correlation",
    "step_covariance",
    "tangent_gram",
]
