"""The Lotka-Volterra process: its events, its distribution over a short time, and the tasks."""

import numpy as np
import pytest
import torch

from pyro_ext.models.neural_processes import PredatorPreyTasks, tasks

RATES = (0.01, 0.5, 1.0, 0.01)


def loops():
    from pyro_ext.models.neural_processes import _predator_prey_loops

    return _predator_prey_loops.simulate


def test_course_by_hand():
    """Rates at (50, 100): 50, 25, 100 and 50."""
    waits, uniforms = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.1, 0.99, 0.3, 0.5])
    times, populations = loops()(50, 100, np.array(RATES), waits, uniforms)
    expected, state, time = [], [50, 100], 0.0
    for wait, uniform in zip(waits, uniforms, strict=True):
        x, y = state
        parts = np.array([0.01 * x * y, 0.5 * x, 1.0 * y, 0.01 * x * y])
        time += wait / parts.sum()
        event = int((parts.cumsum() <= uniform * parts.sum()).sum())
        state[event // 2] += 1 if event % 2 == 0 else -1
        expected.append((time, *state))
    np.testing.assert_allclose(np.column_stack([times, populations]), expected)
    assert times[0] == pytest.approx(1 / 225)


def test_course_ends_where_nothing_happens():
    waits, uniforms = np.ones(10), np.full(10, 0.999)
    times, populations = loops()(1, 0, np.array(RATES), waits, uniforms)
    assert len(times) == 1 and populations[-1].tolist() == [0, 0]


def test_tasks_are_points_of_courses():
    points = PredatorPreyTasks(num_tasks=3)(seed=0).points
    assert points.outputs.shape[-1] == 2 and 30 <= points.inputs.shape[1] <= 100
    populations = 100.0 * points.outputs
    torch.testing.assert_close(populations, populations.round())
    assert populations.min() > 0.5
    assert 0 <= points.inputs.min() and points.inputs.max() > 1.5  # times are in tens
    # Predators and prey swing about 100 and 50.
    mean = populations.mean((0, 1))
    assert 60 < mean[0] < 250 and 30 < mean[1] < 150


def test_sizes():
    make = PredatorPreyTasks(num_tasks=2, num_events=2000)
    sizes = []
    for seed in range(40):
        batch = make(seed)
        sizes.append((batch.context_inputs.shape[1], batch.target_inputs.shape[1]))
    assert min(min(size) for size in sizes) >= 15 and max(map(sum, sizes)) <= 100
    assert len(set(sizes)) > 30


def test_what_users_may_get_wrong(monkeypatch):
    monkeypatch.setattr(tasks, "_MAX_TRIALS", 0)
    with pytest.raises(ValueError, match="num_events must be at least the .* points of a task"):
        PredatorPreyTasks()(0)
