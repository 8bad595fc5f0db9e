"""Rotations as unit quaternions (w, x, y, z), batched in torch. Angles in rad."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

# Every entry of a product and of a rotation matrix is a sum of products of components. As
# ((p left) * (q right)) sums, with zeros and ones in left and right, these are a few operations on
# whole rows instead of dozens on columns: a quarter of the time for 512 rows.
_W, _X, _Y, _Z = range(4)
_PRODUCT = (  # rows w, x, y, z: sign, component of p, component of q
    ((1, _W, _W), (-1, _X, _X), (-1, _Y, _Y), (-1, _Z, _Z)),
    ((1, _W, _X), (1, _X, _W), (1, _Y, _Z), (-1, _Z, _Y)),
    ((1, _W, _Y), (-1, _X, _Z), (1, _Y, _W), (1, _Z, _X)),
    ((1, _W, _Z), (1, _X, _Y), (-1, _Y, _X), (1, _Z, _W)),
)
# p times the conjugate of q: where a component of q other than w stands, the sign turns
_DIFFERENCE = tuple(tuple((s if b == _W else -s, a, b) for s, a, b in row) for row in _PRODUCT)
_COLUMNS = (  # of the first two columns of the rotation matrix, less the identity
    ((-2, _Y, _Y), (-2, _Z, _Z)),
    ((2, _X, _Y), (2, _W, _Z)),
    ((2, _X, _Z), (-2, _W, _Y)),
    ((2, _X, _Y), (-2, _W, _Z)),
    ((-2, _X, _X), (-2, _Z, _Z)),
    ((2, _Y, _Z), (2, _W, _X)),
)
_Rows = tuple[tuple[tuple[int, int, int], ...], ...]


class _Bilinear:
    """Constants (left, right, sums, offset) of a table of products, per device and type."""

    def __init__(self, rows: _Rows, offset: list[int]) -> None:
        terms = [term for row in rows for term in row]
        left, right = torch.zeros(4, len(terms)), torch.zeros(4, len(terms))
        sums = torch.zeros(len(terms), len(rows))
        for i, (_, a, b) in enumerate(terms):
            left[a, i], right[b, i] = 1.0, 1.0
        where = [k for k, row in enumerate(rows) for _ in row]
        sums[range(len(terms)), where] = torch.tensor([float(sign) for sign, _, _ in terms])
        self._base = left, right, sums, torch.tensor(offset, dtype=torch.float32)
        # on the CPU made here and not at first use, which may be inside an export's tracing
        cpu = torch.device("cpu")
        self._made = {
            (cpu, dtype): tuple(x.to(dtype) for x in self._base)
            for dtype in (torch.float32, torch.float64)
        }

    def of(self, like: Tensor) -> tuple[Tensor, ...]:
        key = like.device, like.dtype
        if key not in self._made:
            self._made[key] = tuple(x.to(*key) for x in self._base)
        return self._made[key]


_MUL = _Bilinear(_PRODUCT, [0, 0, 0, 0])
_MUL_CONJ = _Bilinear(_DIFFERENCE, [0, 0, 0, 0])
_TO_6D = _Bilinear(_COLUMNS, [1, 0, 0, 0, 1, 0])


def quat_mul(p: Tensor, q: Tensor) -> Tensor:
    """Hamilton product p q: rotate by q, then by p. (..., 4), (..., 4) -> (..., 4)."""
    products = (p @ _MUL.of(p)[0]) * (q @ _MUL.of(q)[1])
    return products @ _MUL.of(products)[2]


def quat_mul_conj(p: Tensor, q: Tensor) -> Tensor:
    """p q^-1, the rotation that takes q to p; unit quaternions (..., 4), (..., 4) -> (..., 4)."""
    products = (p @ _MUL_CONJ.of(p)[0]) * (q @ _MUL_CONJ.of(q)[1])
    return products @ _MUL_CONJ.of(products)[2]


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
    left, right, sums, identity = _TO_6D.of(q)
    return ((q @ left) * (q @ right)) @ sums + identity


def cube_symmetries() -> Tensor:
    """The 24 rotations that put a cube back into its own place, (24, 4), the identity first.

    Unit quaternions of the octahedral group: all signs of (1, 0, 0, 0), (1, 1, 1, 1) / 2 and
    (1, 1, 0, 0) / sqrt 2 in every order; a quaternion and its negative are one rotation.
    """
    found = [
        torch.tensor(q, dtype=torch.float64)
        for q in itertools.product((-1.0, 0.0, 1.0), repeat=4)
        if sum(map(abs, q)) in (1.0, 2.0, 4.0)
    ]
    first = [q / q.norm() for q in found if q[q != 0.0][0] > 0.0]
    return torch.stack(sorted(first, key=lambda q: -float(q[0]))).float()


def nearest_upright(q: Tensor, symmetries: Tensor) -> Tensor:
    """The rotation with the smallest angle among all that look the same as q.

    An object that a symmetry maps onto itself moves in the same way under q as under q times the
    symmetry, so whoever is shown only this one has the less to learn.

    Args:
        q: unit quaternions (..., 4).
        symmetries: (S, 4), of the object's own frame.

    Returns:
        (..., 4), of either sign.
    """
    # the w of q s is the product of q with the conjugate of s
    conjugates = symmetries * symmetries.new_tensor([1.0, -1.0, -1.0, -1.0])
    best = (q @ conjugates.T).abs().argmax(-1)
    return quat_mul(q, symmetries[best])


# Angles of random rotations by their cumulative share, 0 to pi; dense enough for 1e-4 rad.
_ANGLES = torch.linspace(0.0, torch.pi, 4097, dtype=torch.float64)
_SHARES = _ANGLES - _ANGLES.sin()


def random_rotation(most: Tensor, generator: torch.Generator) -> Tensor:
    """Rotations uniform among those by at most `most` rad, which is (N,); unit, (N, 4).

    Under the uniform (Haar) measure of SO(3) the axis is uniform on the sphere and the angle has
    the density (1 - cos angle) / pi on 0 to pi (Miles, Biometrika 52, 1965), whose integral,
    angle - sin angle, is inverted here by linear interpolation.
    """
    device, dtype = most.device, most.dtype
    shares, angles = _SHARES.to(device), _ANGLES.to(device)
    drawn = torch.rand(len(most), generator=generator, device=device, dtype=torch.float64)
    share = drawn * (most - most.sin())
    above = torch.searchsorted(shares, share).clamp(1, len(shares) - 1)
    low, high = shares[above - 1], shares[above]
    part = (share - low) / (high - low)
    angle = angles[above - 1] + part * (angles[above] - angles[above - 1])
    axis = torch.randn(len(most), 3, generator=generator, device=device, dtype=torch.float64)
    axis = axis / torch.linalg.vector_norm(axis, dim=-1, keepdim=True)
    return quat_from_rotvec(axis * angle[:, None]).to(dtype)
