"""Neural processes: networks trained on many functions to predict new ones from a few points.

These are the processes of [1] to [4], and martingale posterior neural processes [5].

[1] M. Garnelo, D. Rosenbaum, C. J. Maddison, T. Ramalho, D. Saxton, M. Shanahan, Y. W. Teh,
D. J. Rezende, S. M. A. Eslami (2018), Conditional neural processes.

[2] M. Garnelo, J. Schwarz, D. Rosenbaum, F. Viola, D. J. Rezende, S. M. A. Eslami, Y. W. Teh
(2018), Neural processes.

[3] H. Kim, A. Mnih, J. Schwarz, M. Garnelo, S. M. A. Eslami, D. Rosenbaum, O. Vinyals, Y. W. Teh
(2019), Attentive neural processes.

[4] J. Lee, Y. Lee, J. Kim, E. Yang, S. J. Hwang, Y. W. Teh (2020), Bootstrapping neural processes.

[5] H. Lee, E. Yun, G. Nam, E. Fong, J. Lee (2023), Martingale posterior neural processes.
"""

from pyro_ext.models.neural_processes.batch import Batch, Points
from pyro_ext.models.neural_processes.bayesian_optimization import (
    Optimization,
    expected_improvement,
    minimize,
)
from pyro_ext.models.neural_processes.conditional import (
    BANP,
    BNP,
    CANP,
    CNP,
    BootstrapProcess,
    ConditionalProcess,
)
from pyro_ext.models.neural_processes.latent import ANP, NP, LatentProcess
from pyro_ext.models.neural_processes.martingale import (
    MPANP,
    MPNP,
    MartingalePosteriorProcess,
    RepresentationGenerator,
)
from pyro_ext.models.neural_processes.networks import (
    CrossAttentionEncoder,
    Decoder,
    JointEncoder,
    PoolingEncoder,
    SetEncoder,
)
from pyro_ext.models.neural_processes.process import NeuralProcess
from pyro_ext.models.neural_processes.tasks import GPTasks, ImageTasks, PredatorPreyTasks
from pyro_ext.models.neural_processes.training import LogLikelihoods, fit, log_likelihoods

__all__ = [
    "ANP",
    "BANP",
    "BNP",
    "CANP",
    "CNP",
    "MPANP",
    "MPNP",
    "NP",
    "Batch",
    "BootstrapProcess",
    "ConditionalProcess",
    "CrossAttentionEncoder",
    "Decoder",
    "GPTasks",
    "ImageTasks",
    "JointEncoder",
    "LatentProcess",
    "LogLikelihoods",
    "MartingalePosteriorProcess",
    "NeuralProcess",
    "Optimization",
    "Points",
    "PoolingEncoder",
    "PredatorPreyTasks",
    "RepresentationGenerator",
    "SetEncoder",
    "expected_improvement",
    "fit",
    "log_likelihoods",
    "minimize",
]
