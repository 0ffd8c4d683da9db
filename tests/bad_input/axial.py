"""Valid calls of axial networks and what they are tried on, for :mod:`walk` to spoil."""

import torch

from pyro_ext.models.symmetry import XMPP, XCViT
from pyro_ext.nn.axial import (
    GXCNN,
    SXCNN,
    AxialConv,
    AxialGraphConv,
    AxialLift,
    AxialPool,
    AxialSelfAttention,
)
from tests.bad_input.walk import Call, call, of

FIELD, FEATURES, HISTORY = (
    torch.randn(2, 4, 4, 2),
    torch.randn(2, 2, 4, 4, 2),
    torch.randn(2, 2, 4, 4, 1),
)


def blocks() -> dict[str, Call]:
    conv = dict(in_channels=2, out_channels=3)
    options = dict(
        stride=1, activation=torch.nn.ReLU, padding_mode="zeros", transposed=False, depth=1
    )
    network = dict(in_channels=2, num_outputs=3, channels=4)
    module = SXCNN(2, 3, 4, 2)
    return {
        "AxialConv": call(**conv, **options),
        "AxialConv.forward": of(AxialConv(2, 3), inputs=FIELD),
        "AxialSelfAttention": call(channels=4, max_distance=2),
        "AxialSelfAttention.forward": of(AxialSelfAttention(2, 1), inputs=FIELD),
        "AxialLift": call(**conv, **options),
        "AxialLift.forward": of(AxialLift(2, 3), inputs=FIELD),
        "AxialGraphConv": call(**conv, **options),
        "AxialGraphConv.forward": of(AxialGraphConv(2, 3), features=FEATURES),
        "AxialPool": call(),
        "AxialPool.forward": of(AxialPool(), features=FEATURES),
        "SXCNN": call(**network, **options),
        "SXCNN.forward": of(module, inputs=FIELD),
        "GXCNN": call(**network, **options),
        "GXCNN.forward": of(GXCNN(2, 3, 4, 2), inputs=FIELD),
        "check_axis_equivariance": call(module=module, shape=(2, 4, 5, 2)),
    }


def symmetry() -> dict[str, Call]:
    sizes = dict()
    return {
        "XMPP": call(**sizes),
        "XMPP.forward": of(XMPP(channels=4, num_blocks=1), history=HISTORY),
        "XCViT": call(**sizes),
        "XCViT.forward": of(
            XCViT(channels=4, num_blocks=1), history=HISTORY, points=torch.rand(3, 2)
        ),
        "transport_step": call(field=FIELD),
        "transport_fields": call(num_fields=2, num_axes=2),
        "kernel_fields": call(num_fields=2, num_axes=2),
    }


TABLES = {"pyro_ext.nn.axial": blocks, "pyro_ext.models.symmetry (axial networks)": symmetry}
