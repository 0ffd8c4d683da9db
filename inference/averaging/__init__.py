"""More than one network in one: averages of weights, paths between modes, sparse and fused nets."""

__all__: list[str] = []
