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
