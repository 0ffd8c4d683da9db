"""Link prediction on streams of events, attacks on it, and defenses."""

from pyro_ext.models.temporal_graphs.attacks import StructuralAttack, TSpear, spread_pairs
from pyro_ext.models.temporal_graphs.defenses import (
    CosineFilter,
    Defense,
    LowRankWeights,
    TShield,
    temporal_smoothness,
)
from pyro_ext.models.temporal_graphs.events import EventStream
from pyro_ext.models.temporal_graphs.link_prediction import (
    LinkFit,
    LinkScores,
    evaluate_links,
    fit_links,
)
from pyro_ext.models.temporal_graphs.network import GraphState, TemporalGraphNetwork

__all__ = [
    "CosineFilter",
    "Defense",
    "EventStream",
    "GraphState",
    "LinkFit",
    "LinkScores",
    "LowRankWeights",
    "StructuralAttack",
    "TSpear",
    "TShield",
    "TemporalGraphNetwork",
    "evaluate_links",
    "fit_links",
    "spread_pairs",
    "temporal_smoothness",
]
