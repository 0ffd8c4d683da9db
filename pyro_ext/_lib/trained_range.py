"""Check that data lie where a network was trained."""

import warnings

from torch import Tensor


def warn_outside(
    what: str, values: Tensor, ends: Tensor, *, slack: float = 0.01, stacklevel: int = 5
) -> None:
    """Warn of values ``(*batch, *event)`` beyond the least and the greatest, ``(2, *event)``.

    Slack is a part of the width, since ends may be only the farthest of some draws.
    """
    low, high = ends
    beyond = slack * (high - low)
    outside = (values < low - beyond) | (values > high + beyond)
    if not bool(outside.any()):
        return
    columns = zip(low.reshape(-1).tolist(), high.reshape(-1).tolist(), strict=True)
    ranges = ", ".join(f"from {least:.4g} to {greatest:.4g}" for least, greatest in columns)
    warnings.warn(
        f"{what} must be {ranges}, where the network was trained, got "
        f"{float(values[outside][0]):.4g}: predictions there are unreliable. Bring data into "
        "this range, or train on what covers them",
        stacklevel=stacklevel,
    )
