"""Sequential Monte Carlo over the sites of a model, over sequences, and from prior to posterior."""

from pyro_ext.inference.smc.autoregressive import IncrementalModel, sequence_log_prob
from pyro_ext.inference.smc.distillation import SelfDistilledTwistedSMC
from pyro_ext.inference.smc.filters import TwistedSMCFilter
from pyro_ext.inference.smc.huggingface import CausalLM
from pyro_ext.inference.smc.losses import (
    CTLLoss,
    DPGLoss,
    FUDGELoss,
    PolicyLoss,
    SIXOLoss,
    SoftQLoss,
    TwistLoss,
)
from pyro_ext.inference.smc.markov import MarkovTwist, exact_markov_twist
from pyro_ext.inference.smc.particles import effective_sample_size
from pyro_ext.inference.smc.pyro_models import MarkovSMC
from pyro_ext.inference.smc.tabular import TabularTwist
from pyro_ext.inference.smc.tempered import TemperedSMC, TemperingSchedule
from pyro_ext.inference.smc.twisted import BidirectionalBounds, ProposalDraws, SMCResult, TwistedSMC

__all__ = [
    "BidirectionalBounds",
    "CTLLoss",
    "CausalLM",
    "DPGLoss",
    "FUDGELoss",
    "IncrementalModel",
    "MarkovSMC",
    "MarkovTwist",
    "PolicyLoss",
    "ProposalDraws",
    "SIXOLoss",
    "SMCResult",
    "SelfDistilledTwistedSMC",
    "SoftQLoss",
    "TabularTwist",
    "TemperedSMC",
    "TemperingSchedule",
    "TwistLoss",
    "TwistedSMC",
    "TwistedSMCFilter",
    "effective_sample_size",
    "exact_markov_twist",
    "sequence_log_prob",
]
