"""Diffusion models of images: purification, faster sampling, and the erasure of concepts."""

from pyro_ext.models.diffusion.digit_transformer import digit_transformer_pipeline
from pyro_ext.models.diffusion.digits import WORDS, digit_images, digit_judge, digit_pipeline
from pyro_ext.models.diffusion.early_exit import EarlyExit
from pyro_ext.models.diffusion.early_exit_tuning import AdaptiveScoreFineTuner
from pyro_ext.models.diffusion.erasure import (
    ESD,
    ConceptErasure,
    ConceptOrder,
    SafeSelfDistillation,
)
from pyro_ext.models.diffusion.exit_schedule import ExitSchedule
from pyro_ext.models.diffusion.fine_tuning import fine_tune
from pyro_ext.models.diffusion.human_feedback import ErasedByFeedback, HumanFeedbackInversion
from pyro_ext.models.diffusion.modular_lora import ModularLoRA
from pyro_ext.models.diffusion.purification import AdaptiveScorePurifier, Purification
from pyro_ext.models.diffusion.reward_models import RewardFit, RewardModel, bradley_terry_loss
from pyro_ext.models.diffusion.soft_tokens import (
    RewardWeightedInversion,
    SoftToken,
    WeightedImages,
    reward_weights,
)

__all__ = [
    "ESD",
    "WORDS",
    "AdaptiveScoreFineTuner",
    "AdaptiveScorePurifier",
    "ConceptErasure",
    "ConceptOrder",
    "EarlyExit",
    "ErasedByFeedback",
    "ExitSchedule",
    "HumanFeedbackInversion",
    "ModularLoRA",
    "Purification",
    "RewardFit",
    "RewardModel",
    "RewardWeightedInversion",
    "SafeSelfDistillation",
    "SoftToken",
    "WeightedImages",
    "bradley_terry_loss",
    "digit_images",
    "digit_judge",
    "digit_pipeline",
    "digit_transformer_pipeline",
    "fine_tune",
    "reward_weights",
]
