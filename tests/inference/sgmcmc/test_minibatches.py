"""Minibatches: shuffled epochs that follow from seed, chain and step."""

import torch

from pyro_ext.inference.sgmcmc.minibatches import Minibatches
from pyro_ext.potential import Plate

PLATES = (Plate("rows", 10, 3, -1), Plate("columns", 6, 2, -2))


def test_an_epoch_takes_each_element_at_most_once():
    rows, columns = Minibatches(PLATES, range(4), seed=0)(0, 9)
    assert rows.shape == (9, 4, 3) and columns.shape == (9, 4, 2)
    for chain in range(4):
        for epoch in range(3):
            taken = rows[3 * epoch : 3 * epoch + 3, chain].flatten().tolist()
            assert len(set(taken)) == 9 and set(taken) <= set(range(10))
            taken = columns[3 * epoch : 3 * epoch + 3, chain].flatten().tolist()
            assert sorted(taken) == list(range(6))


def test_epochs_chains_plates_and_seeds_differ():
    rows, columns = Minibatches(PLATES, range(2), seed=0)(0, 6)
    assert not torch.equal(rows[:3, 0], rows[3:, 0])
    assert not torch.equal(rows[:, 0], rows[:, 1])
    assert not torch.equal(rows, Minibatches(PLATES, range(2), seed=1)(0, 6)[0])


def test_batches_do_not_depend_on_the_other_chains_nor_on_how_many_are_asked_for():
    whole = Minibatches(PLATES, range(5), seed=7)(0, 20)
    alone = Minibatches(PLATES, range(3, 4), seed=7)
    pieces = [alone(start, 4) for start in (16, 0, 8, 4, 12)]
    order = [1, 3, 2, 4, 0]
    for number in range(2):
        joined = torch.cat([pieces[place][number] for place in order])
        assert torch.equal(joined[:, 0], whole[number][:, 3])


def test_each_element_is_taken_equally_often():
    rows, _ = Minibatches(PLATES, range(1), seed=3)(0, 9000)
    counts = torch.bincount(rows.flatten(), minlength=10).double()
    # 3,000 epochs leave out one element each: 2,700 times each, standard deviation 16.
    assert (counts - 2700).abs().max() < 5 * 16.5
