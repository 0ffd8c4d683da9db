"""Neural processes: networks that learn from many functions to predict others from few points.

Those of [1] to [4], and martingale posterior neural processes [5].

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
from pyro_ext.models.neural_processes.bootstrap import BANP, BNP, BootstrapProcess
from pyro_ext.models.neural_processes.conditional import CANP, CNP, ConditionalProcess
from pyro_ext.models.neural_processes.decoder import Decoder
from pyro_ext.models.neural_processes.encoders import (
    CrossAttentionEncoder,
    JointEncoder,
    PoolingEncoder,
    SetEncoder,
)
from pyro_ext.models.neural_processes.evaluation import LogLikelihoods, log_likelihoods
from pyro_ext.models.neural_processes.generators import (
    InputGenerator,
    PseudoContextGenerator,
    RepresentationGenerator,
)
from pyro_ext.models.neural_processes.gp_tasks import GPTasks
from pyro_ext.models.neural_processes.image_tasks import ImageTasks
from pyro_ext.models.neural_processes.latent import ANP, NP, LatentProcess
from pyro_ext.models.neural_processes.martingale import MPANP, MPNP, MartingalePosteriorProcess
from pyro_ext.models.neural_processes.predator_prey import PredatorPreyTasks
from pyro_ext.models.neural_processes.process import NeuralProcess
from pyro_ext.models.neural_processes.training import fit

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
    "InputGenerator",
    "JointEncoder",
    "LatentProcess",
    "LogLikelihoods",
    "MartingalePosteriorProcess",
    "NeuralProcess",
    "Optimization",
    "Points",
    "PoolingEncoder",
    "PredatorPreyTasks",
    "PseudoContextGenerator",
    "RepresentationGenerator",
    "SetEncoder",
    "expected_improvement",
    "fit",
    "log_likelihoods",
    "minimize",
]
