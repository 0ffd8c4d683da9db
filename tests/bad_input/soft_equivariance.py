"""Valid calls of groups and soft equivariance, for :mod:`walk` to spoil."""

import torch

from pyro_ext.groups import EmbeddedO2, EquivariantProjector, O, TensorRep
from pyro_ext.models.symmetry import EquivarianceTuner, SoftEMLP
from pyro_ext.nn import EquivariantBilinear, GatedNonlinearity, SoftEquivariantLinear
from tests.bad_input.walk import Call, call, of

VECTOR, MATRIX = TensorRep({1: 1}), TensorRep({2: 1})


def groups() -> dict[str, Call]:
    torch.manual_seed(0)
    rep, x = TensorRep({0: 1, 1: 1}), torch.randn(5, 4)
    projector = EquivariantProjector(VECTOR, MATRIX, O(3))
    return {
        "Group": call(
            lie_algebra=torch.zeros(1, 2, 2), discrete=torch.eye(2)[None], name="a group"
        ),
        "Group.sample": of(O(3), num_elements=2),
        "Group.invariants": of(O(3), upper=1),
        "SO": call(dim=3),
        "O": call(dim=3),
        "Scale": call(dim=3),
        "EmbeddedO2": call(i=0, j=1),
        "TensorRep": call(multiplicities={0: 1, 1: 2}, dim=3),
        "TensorRep.uniform": of(TensorRep, size=20, dim=3),
        "TensorRep.size": of(rep, dim=3),
        "TensorRep.split": of(rep, x=x, dim=3),
        "TensorRep.act": of(rep, g=torch.eye(3), x=x),
        "EquivariantProjector": call(rep_in=VECTOR, rep_out=MATRIX, group=O(3)),
        "EquivariantProjector.project": of(projector, weight=torch.randn(9, 3)),
        "EquivariantProjector.residual": of(projector, weight=torch.randn(9, 3)),
    }


def prior() -> dict[str, Call]:
    return {
        "SoftEquivariantNormal": call(
            rep_in=VECTOR,
            rep_out=MATRIX,
            groups=[O(3), EmbeddedO2(0, 1)],
            strengths=torch.tensor([0.0, 1.0]),
        )
    }


def layers() -> dict[str, Call]:
    torch.manual_seed(0)
    layer, x = SoftEquivariantLinear(VECTOR, MATRIX, [O(3)]), torch.randn(5, 3)
    rep = TensorRep({0: 1, 1: 1})
    return {
        "SoftEquivariantLinear": call(
            rep_in=VECTOR,
            rep_out=MATRIX,
            groups=[O(3), EmbeddedO2(0, 1)],
            strengths=torch.tensor([0.0, 1.0]),
        ),
        "SoftEquivariantLinear.forward": of(layer, x=x),
        "SoftEquivariantLinear.residuals": of(layer, weight=torch.randn(9, 3), bias=torch.randn(9)),
        "SoftEquivariantLinear.penalty": of(layer, strengths=torch.ones(1)),
        "GatedNonlinearity": call(rep=rep, dim=3),
        "GatedNonlinearity.forward": of(GatedNonlinearity(rep, 3), x=torch.randn(5, 5)),
        "EquivariantBilinear": call(rep=rep, group=O(3)),
        "EquivariantBilinear.forward": of(EquivariantBilinear(rep, O(3)), x=torch.randn(5, 4)),
        "equivariance_residuals": call(module=layer),
        "project_weights_": call(module=layer, group=0),
        "equivariance_error": call(function=layer, rep_in=VECTOR, rep_out=MATRIX, group=O(3), x=x),
    }


def networks() -> dict[str, Call]:
    torch.manual_seed(0)
    candidates = [O(3), EmbeddedO2(0, 1)]
    network = SoftEMLP(VECTOR, MATRIX, candidates, 10, num_blocks=1)
    tuner = EquivarianceTuner([1.0, 1.0])
    tuner.update([1.0, 2.0])
    return {
        "EquivarianceTuner": call(strengths=torch.tensor([0.0, 1.0])),
        "EquivarianceTuner.update": of(tuner, residuals=torch.tensor([1.0, 2.0])),
        "EquivarianceTuner.adjust": of(tuner),
        "SoftEMLP": call(rep_in=VECTOR, rep_out=MATRIX, groups=candidates),
        "SoftEMLP.forward": of(network, x=torch.randn(5, 3)),
        "SoftEMLP.fit": of(
            network,
            x=torch.randn(5, 3),
            y=torch.randn(5, 9),
            strengths=torch.tensor([0.0, 1.0]),
            num_steps=2,
        ),
    }


TABLES = {
    "pyro_ext.groups": groups,
    "pyro_ext.distributions (soft equivariance)": prior,
    "pyro_ext.nn (soft equivariance)": layers,
    "pyro_ext.models.symmetry (soft equivariance)": networks,
}
