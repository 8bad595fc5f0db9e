"""Rotations as unit quaternions (w, x, y, z), batched in torch. Angles in rad."""

from __future__ import annotations

import torch
from torch import Tensor


def quat_mul(p: Tensor, q: Tensor) -> Tensor:
    """Hamilton product p q: rotate by q, then by p. (..., 4), (..., 4) -> (..., 4)."""
    pw, px, py, pz = p.unbind(-1)
    qw, qx, qy, qz = q.unbind(-1)
    return torch.stack(
        (
            pw * qw - px * qx - py * qy - pz * qz,
            pw * qx + px * qw + py * qz - pz * qy,
            pw * qy - px * qz + py * qw + pz * qx,
            pw * qz + px * qy - py * qx + pz * qw,
        ),
        -1,
    )


def quat_conj(q: Tensor) -> Tensor:
    """Inverse of a unit quaternion, (..., 4)."""
    w, x, y, z = q.unbind(-1)
    return torch.stack((w, -x, -y, -z), -1)


def quat_from_rotvec(v: Tensor) -> Tensor:
    """Quaternion of the rotation by |v| rad about v, (..., 3) -> (..., 4); exact at v = 0."""
    half = 0.5 * torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    # sinc(x) is sin(pi x)/(pi x): no division by zero for the identity
    return torch.cat((half.cos(), 0.5 * v * torch.sinc(half / torch.pi)), -1)


def quat_angle(p: Tensor, q: Tensor) -> Tensor:
    """Angle in [0, pi] of the rotation that takes q to p; (..., 4), (..., 4) -> (...)."""
    # |difference| and |sum| of unit quaternions keep their precision at both ends, which the
    # arc cosine of a dot product does not
    a = torch.linalg.vector_norm(p - q, dim=-1)
    b = torch.linalg.vector_norm(p + q, dim=-1)
    return 4.0 * torch.atan2(torch.minimum(a, b), torch.maximum(a, b))


def quat_to_6d(q: Tensor) -> Tensor:
    """First two columns of the rotation matrix, (..., 4) -> (..., 6).

    A continuous representation of rotations (Zhou et al., arXiv 1812.07035).
    """
    w, x, y, z = q.unbind(-1)
    return torch.stack(
        (
            1 - 2 * (y * y + z * z),
            2 * (x * y + w * z),
            2 * (x * z - w * y),
            2 * (x * y - w * z),
            1 - 2 * (x * x + z * z),
            2 * (y * z + w * x),
        ),
        -1,
    )


def quat_yaw(q: Tensor) -> Tensor:
    """The turn about z nearest to q, as a quaternion (..., 4): the swing is thrown away."""
    w, _, _, z = q.unbind(-1)
    # a rotation by pi about a horizontal axis has no nearest turn: take none
    undecided = (w * w + z * z) < 1e-12
    w = torch.where(undecided, torch.ones_like(w), w)
    zero = torch.zeros_like(w)
    norm = torch.rsqrt(w * w + z * z)
    return torch.stack((w * norm, zero, zero, z * norm), -1)
