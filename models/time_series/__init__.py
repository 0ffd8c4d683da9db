"""Classification of time series with gaps, by imputations that a model of the gaps weighs."""

__all__: list[str] = []
