"""Streams and networks that tests of temporal graphs have in common."""

import torch

from pyro_ext.models.temporal_graphs import EventStream, TemporalGraphNetwork


def random_stream(num_events=60, num_nodes=7, num_features=0, seed=0, **options):
    """Events at whole times, some of them the same, between different nodes."""
    generator = torch.Generator().manual_seed(seed)
    sources = torch.randint(num_nodes, (num_events,), generator=generator)
    steps = torch.randint(1, num_nodes, (num_events,), generator=generator)
    times = torch.randint(4 * num_events, (num_events,), generator=generator)
    features = torch.randn(num_events, num_features, generator=generator)
    destinations = (sources + steps) % num_nodes
    return EventStream(sources, destinations, times, features, num_nodes=num_nodes, **options)


def network_for(stream, seed=0, **options):
    """A small network in evaluation mode, whose time encoding is no constant."""
    torch.manual_seed(seed)
    options = {"hidden_size": 6, "num_neighbors": 3, **options}
    network = TemporalGraphNetwork(
        stream.num_nodes, num_features=stream.num_features, **options
    ).eval()
    torch.nn.init.normal_(network.phase)
    return network
