"""Rotations against MuJoCo's own routines and against the axioms."""

import math

import mujoco
import numpy as np
import pytest
import torch

from widen.envs import rotations as rot


@pytest.fixture
def quats() -> torch.Tensor:
    q = torch.randn(200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return q / q.norm(dim=-1, keepdim=True)


def test_products_are_mujocos(quats: torch.Tensor) -> None:
    for p, q in zip(quats[:50], quats[50:100], strict=True):
        expected, conjugate, difference = np.empty(4), np.empty(4), np.empty(4)
        mujoco.mju_mulQuat(expected, p.numpy(), q.numpy())
        mujoco.mju_negQuat(conjugate, q.numpy())
        mujoco.mju_mulQuat(difference, p.numpy(), conjugate)
        np.testing.assert_allclose(rot.quat_mul(p, q).numpy(), expected, atol=1e-15)
        np.testing.assert_allclose(rot.quat_mul_conj(p, q).numpy(), difference, atol=1e-15)


def test_six_numbers_are_the_first_columns_of_the_matrix(quats: torch.Tensor) -> None:
    for q in quats[:50]:
        matrix = np.empty(9)
        mujoco.mju_quat2Mat(matrix, q.numpy())
        columns = matrix.reshape(3, 3)[:, :2].T.ravel()
        np.testing.assert_allclose(rot.quat_to_6d(q).numpy(), columns, atol=1e-15)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 0.4, math.pi / 2, 3.0, math.pi])
def test_angle_of_a_rotation_vector(angle: float, quats: torch.Tensor) -> None:
    axis = torch.tensor([0.6, 0.0, -0.8], dtype=torch.float64)
    turned = rot.quat_mul(rot.quat_from_rotvec(axis * angle), quats)
    np.testing.assert_allclose(rot.quat_angle(turned, quats).numpy(), angle, atol=1e-12)
    # q and -q are one rotation
    np.testing.assert_allclose(rot.quat_angle(-turned, quats).numpy(), angle, atol=1e-12)


def test_rotation_vector_is_mujocos() -> None:
    vector = np.array([0.3, -1.2, 0.7])
    angle = np.linalg.norm(vector)
    expected = np.empty(4)
    mujoco.mju_axisAngle2Quat(expected, vector / angle, angle)
    np.testing.assert_allclose(rot.quat_from_rotvec(torch.tensor(vector)).numpy(), expected)


def test_symmetries_of_a_cube_are_the_24_rotations_of_its_axes_onto_axes() -> None:
    matrices = np.empty((24, 9))
    for matrix, q in zip(matrices, rot.cube_symmetries().double().numpy(), strict=True):
        mujoco.mju_quat2Mat(matrix, q)
    np.testing.assert_allclose(matrices, np.round(matrices), atol=1e-6)
    assert (np.abs(np.round(matrices)).reshape(24, 3, 3).sum(1) == 1).all()
    assert len(np.unique(np.round(matrices), axis=0)) == 24
    np.testing.assert_array_equal(rot.cube_symmetries()[0], [1, 0, 0, 0])


def test_what_looks_the_same_is_shown_the_same(quats: torch.Tensor) -> None:
    group = rot.cube_symmetries().double()
    shown = rot.nearest_upright(quats, group)
    # no cube is further from upright than 62.8 degrees (Mackenzie, Acta Metall. 12, 1964)
    assert rot.quat_angle(shown, group[:1].expand_as(shown)).max() <= math.radians(62.8)
    for one in group:
        same = rot.nearest_upright(rot.quat_mul(quats, one.expand_as(quats)), group)
        np.testing.assert_allclose(rot.quat_angle(same, shown).numpy(), 0.0, atol=1e-6)
    # and it is one of those that look the same
    apart = rot.quat_mul(quats * quats.new_tensor([1.0, -1.0, -1.0, -1.0]), shown)
    nearest = (apart @ group.T).abs().max(-1).values
    np.testing.assert_allclose(nearest.numpy(), 1.0, atol=1e-6)


@pytest.mark.parametrize("most", [0.7, 2.0, math.pi])
def test_random_rotations_are_haar_measures_up_to_an_angle(most: float) -> None:
    n = 200_000
    generator = torch.Generator().manual_seed(5)
    q = rot.random_rotation(torch.full((n,), most, dtype=torch.float64), generator).numpy()
    np.testing.assert_allclose(np.linalg.norm(q, axis=1), 1.0, atol=1e-9)
    angle = np.sort(2.0 * np.arctan2(np.linalg.norm(q[:, 1:], axis=1), q[:, 0]))
    assert angle[-1] <= most + 1e-9
    share = (angle - np.sin(angle)) / (most - np.sin(most))
    # Kolmogorov and Smirnov's distance, 1.95 / sqrt(n) at one in a thousand
    assert np.abs(share - (np.arange(n) + 0.5) / n).max() < 1.95 / math.sqrt(n)
    axis = q[:, 1:] / np.linalg.norm(q[:, 1:], axis=1, keepdims=True)
    np.testing.assert_allclose(axis.mean(0), 0.0, atol=5 / math.sqrt(3 * n))
    np.testing.assert_allclose(axis.T @ axis / n, np.eye(3) / 3, atol=0.005)


def test_haar_measure_is_that_of_normalised_gaussian_quaternions() -> None:
    """Another way to draw them: a normal vector in four dimensions has no preferred direction."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(100_000, 4))
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    expected = np.quantile(2.0 * np.arccos(np.abs(normal[:, 0])), np.linspace(0.05, 0.95, 19))
    whole = torch.full((100_000,), math.pi, dtype=torch.float64)
    q = rot.random_rotation(whole, torch.Generator().manual_seed(1)).numpy()
    angle = np.quantile(2.0 * np.arccos(np.abs(q[:, 0])), np.linspace(0.05, 0.95, 19))
    np.testing.assert_allclose(angle, expected, atol=0.02)
