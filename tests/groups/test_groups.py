"""Groups, tensors they act on, and projections onto equivariant maps, against exact answers."""

import copy
import pickle

import pytest
import torch

from pyro_ext.groups import SO, EmbeddedO2, EquivariantProjector, Group, O, Scale, TensorRep

XY, YZ, XZ = EmbeddedO2(0, 1), EmbeddedO2(1, 2), EmbeddedO2(0, 2)
BOOST = [[0.0, 1.0], [1.0, 0.0]]
LORENTZ = Group([BOOST], [[[1.0, 0.0], [0.0, -1.0]]], name="O(1,1)")
HYPERBOLIC = Group(None, [[[2.0, 1.0], [0.0, 0.5]]], name="powers of a matrix")
GROUPS = [HYPERBOLIC, O(3), SO(3), XY, YZ, XZ, Scale(3), SO(3) | Scale(3), LORENTZ, O(2), SO(4)]
IN, OUT = TensorRep({0: 2, 1: 2, 2: 1}), TensorRep({1: 2, 0: 1, 2: 1})


def flat_projector(projector):
    size = projector.event_shape.numel()
    unit = torch.eye(size, dtype=torch.float64).unflatten(-1, projector.event_shape)
    return projector.project(unit).flatten(1)


@pytest.mark.parametrize(
    ("group", "dims"),
    [
        (O(3), [1, 0, 1, 0, 3]),
        (SO(3), [1, 0, 1, 1, 3]),
        (XY, [1, 1, 2, 4, 10]),
        (YZ, [1, 1, 2, 4, 10]),
        (XZ, [1, 1, 2, 4, 10]),
        (O(2), [1, 0, 1, 0, 3]),
        (SO(2), [1, 0, 2, 0, 6]),
        (Scale(3), [1, 0, 0, 0, 0]),
    ],
)
def test_invariants_of_tensors(group, dims):
    """Numbers of O(3) and O(2) from classical invariant theory, of the plane as computed."""
    found = [EquivariantProjector(None, TensorRep({k: 1}), group).rank for k in range(5)]
    assert found == dims == [group.invariants(k).shape[1] for k in range(5)]


@pytest.mark.parametrize("as_given", [torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.float])
def test_invariants_of_rounded_matrices(as_given):
    """Rotations by 60 degrees, of a plane and about an axis, and SO(3) in another basis."""
    axis = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    about = torch.einsum("i,ijk->jk", axis / axis.norm(), SO(3).lie_algebra.flip(0))
    about[0, 2], about[2, 0] = -about[0, 2], -about[2, 0]
    basis = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = torch.linalg.inv(basis) @ SO(3).lie_algebra @ basis
    plane = torch.linalg.matrix_exp(SO(2).lie_algebra * torch.pi / 3)
    turn = torch.linalg.matrix_exp(about[None] * torch.pi / 3)
    for algebra, discrete, orthogonal, ranks in (
        (None, plane, True, [1, 0, 2, 0, 6]),
        (None, turn, True, [1, 1, 3, 7]),
        (1e3 * about[None], None, True, [1, 1, 3, 7]),
        (other, None, False, [1, 0, 1, 1]),
    ):
        group = Group(*(m if m is None else as_given(m) for m in (algebra, discrete)))
        assert group.is_orthogonal == orthogonal
        assert [group.invariants(rank).shape[1] for rank in range(len(ranks))] == ranks
    assert not Group(as_given(1e-8 * torch.eye(2).double()[None])).is_orthogonal
    small = torch.linalg.matrix_exp(SO(2).lie_algebra * 1e-6)
    assert Group(discrete=small).invariants(1).shape[1] == 0


def test_maps_under_groups_that_are_not_orthogonal():
    """Any matrix commutes with a scale, though it changes every vector."""
    vector, matrix = TensorRep({1: 1}), TensorRep({2: 1})
    assert EquivariantProjector(vector, vector, Scale(3)).rank == 9
    assert EquivariantProjector(matrix, vector, Scale(3)).rank == 0
    assert EquivariantProjector(vector, vector, SO(3) | Scale(3)).rank == 1
    # The metric diag(1, -1) is invariant on upper axes, and commutes with nothing but multiples.
    (metric,) = LORENTZ.invariants(2).T.reshape(-1, 2, 2) * 2**0.5
    torch.testing.assert_close(metric.abs(), torch.eye(2).double())
    assert float(metric.trace()) == pytest.approx(0.0)
    assert EquivariantProjector(TensorRep({1: 1}), TensorRep({1: 1}), LORENTZ).rank == 1


def test_ranks_of_the_map_of_inertia():
    for group, rank in ((O(3), 15), (XY, 50), (YZ, 50), (XZ, 50)):
        projector = EquivariantProjector(TensorRep({2: 5}), TensorRep({2: 1}), group)
        assert projector.rank == rank
        assert float(flat_projector(projector).trace()) == pytest.approx(rank, abs=1e-10)


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_projections(group):
    """Orthogonal, and onto just the maps that commute with elements of the group."""
    projector = EquivariantProjector(IN, OUT, group)
    matrix = flat_projector(projector)
    torch.testing.assert_close(matrix @ matrix, matrix, atol=1e-13, rtol=0)
    torch.testing.assert_close(matrix, matrix.T, atol=1e-13, rtol=0)
    assert float(matrix.trace()) == pytest.approx(projector.rank, abs=1e-10)
    torch.manual_seed(0)
    weight = torch.randn(3, *projector.event_shape, dtype=torch.float64)
    projected = projector.project(weight)
    half = 0.5 * weight.square().sum((-1, -2))
    torch.testing.assert_close(projector.residual(projected), torch.zeros(3).double())
    kept = 0.5 * projected.square().sum((-1, -2))
    torch.testing.assert_close(projector.residual(weight) + kept, half)
    assert bool((kept <= half).all())
    g = group.sample(20, seed=0)
    x = torch.randn(20, IN.size(group.dim), dtype=torch.float64)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        one = projector.project(weight[0].to(dtype))
        assert one.dtype == IN.act(g, x.to(dtype)).dtype == dtype
        moved = IN.act(g, x).to(dtype) @ one.mT
        after = OUT.act(g.to(dtype), x.to(dtype) @ one.mT)
        size = moved.norm(dim=-1) + after.norm(dim=-1)
        assert float(((moved - after).norm(dim=-1) / (size + 1e-9)).max()) < 2 * tolerance
    # The condition on all maps, by elements alone, has a null space of the same dimension.
    eye_in, eye_out = torch.eye(IN.size(group.dim)), torch.eye(OUT.size(group.dim))
    conditions = []
    for element in g:
        acts_in = IN.act(element, eye_in.double()).T
        acts_out = OUT.act(element, eye_out.double()).T
        unit = torch.eye(weight[0].numel()).double().unflatten(-1, weight[0].shape)
        conditions.append((acts_out @ unit @ torch.linalg.inv(acts_in) - unit).flatten(1))
    stacked = sum(each @ each.T / each.square().sum() for each in conditions if each.any())
    null = int((torch.linalg.eigvalsh(stacked) < 1e-9).sum())
    assert null == projector.rank


def test_gradient_of_the_residual():
    projector = EquivariantProjector(IN, OUT, O(3))
    weight = torch.randn(projector.event_shape, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(projector.residual(weight), weight)
    torch.testing.assert_close(gradient, (weight - projector.project(weight)).detach())
    assert torch.autograd.gradcheck(projector.residual, weight)


def test_larger_groups_have_larger_residuals():
    torch.manual_seed(0)
    weight = torch.randn(20, OUT.size(3), IN.size(3))
    whole = EquivariantProjector(IN, OUT, O(3)).residual(weight)
    for group in (XY, YZ, XZ, SO(3)):
        assert bool((EquivariantProjector(IN, OUT, group).residual(weight) <= whole).all())
    union = EquivariantProjector(IN, OUT, XY | YZ)
    torch.testing.assert_close(union.residual(weight), whole)  # two planes generate O(3)


def test_elements():
    for group in (O(3), SO(4), XY):
        g = group.sample(50, seed=0)
        unit = torch.eye(group.dim).double().expand_as(g)
        torch.testing.assert_close(g @ g.mT, unit)
        assert torch.equal(group.sample(50, seed=0), g) and group.is_orthogonal
        signs = set(torch.linalg.det(g).round().tolist())
        assert signs == ({1.0} if isinstance(group, SO) else {-1.0, 1.0})
    g = Scale(2).sample(50, seed=0)
    assert bool((g[:, 0, 0] == g[:, 1, 1]).all()) and not Scale(2).is_orthogonal
    assert bool((g[:, 0, 1] == 0.0).all()) and bool((g[:, 0, 0] > 0).all())


def test_tensors():
    rep = TensorRep({1: 2, 0: 1, 2: 1})
    assert rep.size(3) == 16 and rep == TensorRep({1: 2, 0: 1, 2: 1, 3: 0}) != IN
    assert TensorRep.uniform(128, 3).size(3) == 128 and len({rep, copy.copy(rep)}) == 1
    g = O(3).sample(4, seed=1)
    vectors, matrix = torch.randn(4, 2, 3).double(), torch.randn(4, 3, 3).double()
    x = torch.cat([vectors.flatten(1), torch.ones(4, 1).double(), matrix.flatten(1)], -1)
    exact = [torch.einsum("nij,nkj->nki", g, vectors).flatten(1), torch.ones(4, 1).double()]
    exact.append((g @ matrix @ g.mT).flatten(1))
    torch.testing.assert_close(rep.act(g, x), torch.cat(exact, -1))
    assert rep.act(g, x[0]).shape == (4, 16) == rep.act(g[0], x).shape


def test_copies_and_transforms():
    projector = EquivariantProjector(IN, OUT, XY)
    weight = torch.randn(4, *projector.event_shape)
    for other in (copy.deepcopy(projector), pickle.loads(pickle.dumps(projector))):
        assert torch.equal(other.project(weight), projector.project(weight))
    torch.testing.assert_close(torch.vmap(projector.project)(weight), projector.project(weight))
    torch.testing.assert_close(torch.vmap(projector.residual)(weight), projector.residual(weight))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Group(), "lie_algebra or discrete must be given, got neither"),
        (lambda: Group(None, torch.ones(1, 2, 2)), "discrete must be invertible .* in row 0"),
        (
            lambda: Group(torch.ones(1, 2, 2), torch.eye(3)[None]),
            "discrete must be matrices of the 2 dimensions of lie_algebra",
        ),
        (lambda: O(3) | O(2), r"other must act on 3 dimensions .* got O\(2\), which acts on 2"),
        (
            lambda: EquivariantProjector(IN, TensorRep({1: 1}, dim=3), O(2)),
            r"group must act on the 3 dimensions of rep_out = 1T\(1\), got O\(2\)",
        ),
        (
            lambda: EquivariantProjector(TensorRep({4: 1}), TensorRep({4: 1}), O(3)),
            r"rep_out and rep_in must have blocks of at most 1024 numbers, got .* with 3\^8",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
