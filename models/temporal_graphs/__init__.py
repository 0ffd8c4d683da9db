"""Link prediction on streams of events, attacks on it and defenses."""

from pyro_ext.models.temporal_graphs.events import EventStream
from pyro_ext.models.temporal_graphs.network import GraphState, TemporalGraphNetwork

__all__ = ["EventStream", "GraphState", "TemporalGraphNetwork"]
