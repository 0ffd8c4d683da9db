"""Models with any number of clusters, of points or of cluster sizes alone, and models of graphs.

[1] S. Favaro, Y. W. Teh (2013), MCMC for normalized random measure mixture models.

[2] F. Ayed, J. Lee, F. Caron (2019), Beyond the Chinese restaurant and Pitman-Yor processes:
statistical models with double power-law behavior.

[3] J. Lee, C. Heaukulani, Z. Ghahramani, L. F. James, S. Choi (2017),
Bayesian inference on random simple graphs with power law degree distributions.

[4] T. Qin, K. Rohe (2013),
Regularized spectral clustering under the degree-corrected stochastic blockmodel.
"""

from pyro_ext.models.nonparametric.frequency_model import (
    FrequencyModel,
    beta_prime_prior,
    generalized_bfry_prior,
    generalized_gamma_prior,
    pareto_mixture_prior,
    pitman_yor_prior,
)
from pyro_ext.models.nonparametric.graph_guide import GraphGuide, spectral_memberships
from pyro_ext.models.nonparametric.graph_model import (
    EdgeOdds,
    GraphModel,
    MixedMembership,
    bfry_weights,
    gamma_weights,
    graph_log_likelihood,
    sample_graph,
)
from pyro_ext.models.nonparametric.graph_pairs import HeldOutPairs, SimpleGraph, UnseenPairs
from pyro_ext.models.nonparametric.graph_prediction import (
    LinkScores,
    degree_odds,
    erdos_renyi_odds,
    log_link_probabilities,
    score_links,
    simulate_graphs,
)
from pyro_ext.models.nonparametric.nrm_mixture import NRMMixture
from pyro_ext.models.nonparametric.nrm_model_mixture import NRMModelMixture

__all__ = [
    "EdgeOdds",
    "FrequencyModel",
    "GraphGuide",
    "GraphModel",
    "HeldOutPairs",
    "LinkScores",
    "MixedMembership",
    "NRMMixture",
    "NRMModelMixture",
    "SimpleGraph",
    "UnseenPairs",
    "beta_prime_prior",
    "bfry_weights",
    "degree_odds",
    "erdos_renyi_odds",
    "gamma_weights",
    "generalized_bfry_prior",
    "generalized_gamma_prior",
    "graph_log_likelihood",
    "log_link_probabilities",
    "pareto_mixture_prior",
    "pitman_yor_prior",
    "sample_graph",
    "score_links",
    "simulate_graphs",
    "spectral_memberships",
]
