"""Link prediction on streams of events, attacks on it and defenses."""

__all__: list[str] = []
