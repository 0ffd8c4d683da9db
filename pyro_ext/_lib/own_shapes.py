"""Values of sites in their own shapes, for models whose sites are weights of layers."""

from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor


class OwnShapes(Messenger):
    """Values of sites without the dimensions of size one that ``Predictive`` puts on their left."""

    def _pyro_post_sample(self, msg: Any) -> None:
        value, shape = msg["value"], msg["fn"].shape()
        if isinstance(value, Tensor) and value.dim() > len(shape):
            if value.shape[value.dim() - len(shape) :] == shape and value.numel() == shape.numel():
                msg["value"] = value.reshape(shape)
