"""Running chains: in groups and in segments, between which their state is plain data."""
