"""What all modules and all blocks of sets have in common, one row each."""

import pyro
import pytest
import torch
from torch import nn

from pyro_ext.groups import EmbeddedO2, O, TensorRep
from pyro_ext.models.sets import DeepSet, SetTransformer
from pyro_ext.models.time_series import DecayImputer
from pyro_ext.nn import (
    ISAB,
    MAB,
    MLP,
    PMA,
    SAB,
    BatchEnsemble,
    BatchEnsembleConv2d,
    BatchEnsembleLinear,
    BayesianModule,
    FilterResponseNorm,
    GeneratorField,
    InducedSetAttention,
    LoRALinear,
    NodeScale,
    ResNet,
)
from pyro_ext.nn.axial import (
    GXCNN,
    SXCNN,
    AxialConv,
    AxialGraphConv,
    AxialLift,
    AxialPool,
    AxialSelfAttention,
)
from pyro_ext.nn.equivariant import EquivariantBilinear, GatedNonlinearity, SoftEquivariantLinear
from pyro_ext.testing.nn import check_axial_block, check_module, check_set_block


class Fixed(nn.Module):
    """A block of two sets as a function of one of them, with another that is fixed."""

    def __init__(self, block, other, call):
        super().__init__()
        self.block, self.call = block, call
        self.register_buffer("other", other)

    def forward(self, x, mask=None):
        return self.call(self.block, self.other, x, mask)


class AtParameters(nn.Module):
    """A Bayesian network as a function of its sites."""

    def __init__(self, network):
        super().__init__()
        self.network, self.bayesian = network, (BayesianModule(network),)

    def forward(self, x):
        with pyro.validation_enabled(False):  # it branches on values
            return pyro.condition(self.bayesian[0], dict(self.network.named_parameters()))(x)


class AllMembers(nn.Module):
    """Outputs of all members of a batch ensemble for each row, from factors that differ."""

    def __init__(self, ensemble):
        super().__init__()
        self.ensemble = ensemble
        for name, parameter in self.named_parameters():
            if name.endswith("factors"):
                nn.init.normal_(parameter, 1.0, 0.3)

    def forward(self, x):
        if not isinstance(self.ensemble, BatchEnsemble):
            x = x.repeat(3, *[1] * (x.dim() - 1))
            return self.ensemble(x).unflatten(0, (3, -1)).movedim(0, 1)
        return self.ensemble(x).movedim(0, 1)


def lora_linear(**options):
    layer = LoRALinear(nn.Linear(4, 3), 2, 3.0, **options)
    nn.init.normal_(layer.B)
    return layer


def set_transformer(encoder="isab", pooling="pma", **options):
    return lambda: SetTransformer(3, 2, 2, 12, 3, 4, encoder, pooling, **options)


def lifted(*layers, agg="max", **options):
    """From a field to features and back, through layers of features."""
    return nn.Sequential(AxialLift(2, 4, agg=agg, **options), *layers, AxialPool(agg))


def of_keys(block, queries, x, mask):
    return block(queries.expand(len(x), -1, -1), x, key_mask=mask)


def of_elements(block, points, x, mask):
    return block(x, points.expand(len(x), -1, -1), mask)


def of_inducing_points(block, x, points, mask):
    return block(x.expand(len(points), -1, -1), points, inducing_mask=mask)


torch.manual_seed(0)  # what is imported draws numbers, and never the same ones
# What makes each block of sets of three features, and whether it keeps the elements apart.
SETS = {
    "SAB": (lambda: SAB(3, 12, 3), True),
    "ISAB": (lambda: ISAB(3, 12, 4, 3), True),
    "PMA": (lambda: PMA(3, 12, 2, 3), False),
    "SAB as in the code": (lambda: SAB(3, 12, 3, bias=True, layer_norm=False), True),
    "SAB as in the text": (lambda: SAB(3, 3, 3, bias=True, residual="input"), True),
    "ISAB with competition": (lambda: ISAB(3, 12, 4, 3, normalize="queries"), True),
    "PMA with competition": (lambda: PMA(3, 12, 2, 3, normalize="queries", bias=True), False),
    "MAB": (lambda: Fixed(MAB(2, 3, 12, 3), torch.randn(1, 4, 2), of_keys), False),
    "InducedSetAttention": (
        lambda: Fixed(InducedSetAttention(3, 2, 12, 3), torch.randn(1, 4, 2), of_elements),
        True,
    ),
    "InducedSetAttention of points": (
        lambda: Fixed(InducedSetAttention(2, 3, 12, 3), torch.randn(1, 4, 2), of_inducing_points),
        False,
    ),
    "SetTransformer": (set_transformer(), False),
    "SetTransformer as in the text": (
        set_transformer("sab", layer_norm=True, num_decoder_blocks=1),
        False,
    ),
    **{
        f"SetTransformer of {encoder} and {pooling}": (set_transformer(encoder, pooling), False)
        for encoder, pooling in [("isab", "mean"), ("sab", "sum"), ("rff", "pma"), ("rff", "max")]
    },
    "DeepSet": (lambda: DeepSet(3, 2, 2, 12), False),
}
OF_PYRO = {
    "BayesianModule",
    "DecayImputer",
    "SoftEquivariantLinear",
}  # whose calls are no single graph
VECTORS, TENSORS = TensorRep({1: 2}), TensorRep({0: 2, 1: 1, 2: 1})
# What makes each block of fields of two channels.
FIELDS = {
    "AxialConv": lambda: AxialConv(2, 4),
    "AxialConv, strided": lambda: AxialConv(2, 4, 4, "mean", stride=2, padding_mode="circular"),
    "AxialConv, transposed": lambda: AxialConv(2, 4, 2, "sum", stride=2, transposed=True),
    "AxialConv, linear and deep": lambda: AxialConv(2, 4, 2, stride=2, activation=None, depth=2),
    "AxialSelfAttention": lambda: AxialSelfAttention(2, 1),
    "AxialSelfAttention of distances": lambda: AxialSelfAttention(2, 2, "sum", max_distance=2),
    "AxialLift": lambda: lifted(),
    "AxialLift, strided": lambda: lifted(kernel_size=2, stride=2, agg="mean", depth=2),
    "AxialGraphConv": lambda: lifted(AxialGraphConv(4, 3)),
    "AxialGraphConv, transposed": lambda: lifted(
        AxialGraphConv(4, 3, 4, "sum", stride=2, transposed=True), agg="sum"
    ),
    "SXCNN": lambda: SXCNN(2, 3, 4, 3),
    "SXCNN of fields": lambda: SXCNN(2, channels=4, agg="mean"),
    "GXCNN": lambda: GXCNN(2, 3, 4, 3),
    "GXCNN of fields": lambda: GXCNN(2, channels=4, padding_mode="circular"),
}
SET, MASK = torch.randn(3, 4, 3), torch.rand(3, 4) < 0.6
# What makes each module, and its inputs.
MODULES = {
    "MLP": (lambda: MLP(4, [5], 3), (torch.randn(6, 4),)),
    "ResNet": (lambda: ResNet(1, 3, (2, 4)), (torch.randn(2, 1, 8, 8),)),
    "FilterResponseNorm": (lambda: FilterResponseNorm(2), (torch.randn(3, 2, 4),)),
    "FilterResponseNorm of images": (lambda: FilterResponseNorm(2), (torch.randn(3, 2, 4, 5),)),
    "DecayImputer": (
        lambda: DecayImputer(3),
        (
            torch.randn(6, 5, 3),
            torch.rand(6, 5, 3) < 0.6,
            torch.randn(6, 5, 3),
            torch.rand(6, 5).cumsum(1),
        ),
    ),
    "LoRALinear": (lora_linear, (torch.randn(6, 4),)),
    "LoRALinear of rows": (lambda: lora_linear(train_A=False), (torch.randn(6, 5, 4),)),
    "NodeScale": (lambda: NodeScale(torch.rand(4), learnable=True), (torch.randn(6, 4),)),
    "BatchEnsemble": (lambda: AllMembers(BatchEnsemble(MLP(4, [5], 3), 3)), (torch.randn(6, 4),)),
    "BatchEnsembleLinear": (
        lambda: AllMembers(BatchEnsembleLinear(4, 3, num_members=3)),
        (torch.randn(6, 4),),
    ),
    "BatchEnsembleConv2d": (
        lambda: AllMembers(BatchEnsembleConv2d(2, 3, 3, num_members=3)),
        (torch.randn(4, 2, 5, 5),),
    ),
    "GeneratorField": (lambda: GeneratorField(2, 3, 8, 4, periods={1: 2.0}), (torch.randn(6, 2),)),
    "BayesianModule": (lambda: AtParameters(MLP(4, [5], 3)), (torch.randn(6, 4),)),
    "SoftEquivariantLinear": (
        lambda: SoftEquivariantLinear(VECTORS, TENSORS, [O(3), EmbeddedO2(0, 1)]),
        (torch.randn(6, 6),),
    ),
    "GatedNonlinearity": (lambda: GatedNonlinearity(TENSORS, 3), (torch.randn(6, 16),)),
    "EquivariantBilinear": (lambda: EquivariantBilinear(TENSORS, O(3)), (torch.randn(6, 14),)),
    "MAB without norm": (
        lambda: Fixed(
            MAB(2, 3, 12, 3, scaling="head", layer_norm=False), torch.randn(1, 4, 2), of_keys
        ),
        (SET, MASK),
    ),
    **{name: (make, (SET, MASK)) for name, (make, _) in SETS.items()},
    **{
        name: (FIELDS[name], (torch.randn(2, 4, 4, 2),))
        for name in (
            "AxialConv, strided",
            "AxialSelfAttention of distances",
            "AxialGraphConv, transposed",
            "SXCNN",
            "GXCNN of fields",
        )
    },
}


# PyTorch maps its attention over parameters one by one.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


@pytest.mark.parametrize(("make", "inputs"), MODULES.values(), ids=MODULES)
def test_modules(make, inputs):
    check_module(make, *inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODULES.keys() - OF_PYRO))
def test_compiled_modules(name):
    make, inputs = MODULES[name]
    check_module(make, *inputs, compiled=True)


@pytest.mark.parametrize("name", FIELDS)
def test_fields(name):
    check_axial_block(FIELDS[name], 2)


@pytest.mark.parametrize(("make", "equivariant"), SETS.values(), ids=SETS)
def test_sets(make, equivariant):
    check_set_block(make, 3, equivariant=equivariant)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "equivariant"), SETS.values(), ids=SETS)
def test_compiled_sets(make, equivariant):
    check_set_block(make, 3, equivariant=equivariant, compiled=True)
