"""The alternating rounds of JIVE at given ranks, on blocks small enough for dense SVDs."""

from __future__ import annotations

import math

import torch

_PLAIN_ROUNDS = 20  # before momentum sets in
_ROUNDING = 1e-12  # relative to the blocks: directions of smaller singular values are arbitrary, and nobody's


def null_level(dtype: torch.dtype) -> float:
    """Relative to a block's norm: singular values below it are rounding of the given numbers."""
    return 1e-12 if dtype == torch.float64 else 2e-6


def truncate(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rank-`rank` SVD (u, sigma, vt) of a small matrix."""
    u, sigma, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank], sigma[:rank], vt[:rank]


def without(matrix: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """matrix (I - rows^T rows)."""
    return matrix - (matrix @ rows.T) @ rows


class Rounds:
    """Alternating estimates of the joint and the individual parts, in the order and with the start of r.jive.

    Joint: rank-r_C SVD of the stacked X_i - A_i. Individual: rank-r_A,i SVD of (X_i - C_i)(I - V_C V_C^T), and with
    `orthogonal` also outside the other blocks' current individual row spaces, block after block.
    """

    def __init__(
        self, blocks: list[torch.Tensor], joint_rank: int, ranks: list[int], orthogonal: bool, start: torch.Tensor
    ) -> None:
        self.blocks, self.joint_rank, self.ranks, self.orthogonal = blocks, joint_rank, ranks, orthogonal
        self.heights = [len(block) for block in blocks]
        self.total = torch.cat(blocks)
        self._size = float(self.total.norm())
        self.joint = torch.zeros_like(self.total)
        self.individual = start.expand_as(self.total)
        self.joint_basis = self.total[:0]
        self.joint_sigma = self.total[:0, 0]
        self.bases: list[torch.Tensor] = []
        self.change = math.inf

    def run(self, tolerance: float, max_iterations: int) -> tuple[int, bool]:
        """Iterate; returns the number of iterations and whether both parts have settled.

        Where neighbouring ranks explain nearly as much, the plain rounds creep for ten thousand steps. Momentum
        (Nesterov 1983), begun anew whenever the residual rises (O'Donoghue & Candes 2015), ends at the same fixed
        point in a twentieth of them. With `orthogonal` the answer depends on the path, so the path stays r.jive's.
        """
        run_up, last = 0, math.inf
        given = self.individual  # what a round starts from: the last individual parts, thrown forward
        for iteration in range(max_iterations):
            before = self.joint, self.individual
            self._round(given, first=iteration == 0)
            steps = float((self.joint - before[0]).norm()), float((self.individual - given).norm())
            self.change = max(steps) / self._size
            if iteration > 0 and self.change <= tolerance:
                return iteration + 1, True
            residual = float((self.total - self.joint - self.individual).norm())
            calm = iteration >= _PLAIN_ROUNDS and residual <= last * (1 + 1e-12) and not self.orthogonal
            run_up, last = run_up + 1 if calm else 0, residual
            given = self.individual + run_up / (run_up + 3) * (self.individual - before[1])
        return max_iterations, False

    def _round(self, individual: torch.Tensor, first: bool) -> None:
        """The joint part of what `individual` leaves, and the individual parts of what that leaves."""
        u, self.joint_sigma, rows = truncate(self.total - individual, self.joint_rank)
        self.joint_basis = self._real(self.joint_sigma, rows)
        self.joint = (u * self.joint_sigma) @ self.joint_basis
        self.individual = torch.cat(self._individuals(first))

    def _individuals(self, first: bool) -> list[torch.Tensor]:
        parts = []
        rests = [x - c for x, c in zip(self.blocks, self.joint.split(self.heights), strict=True)]
        for i, (rest, rank) in enumerate(zip(rests, self.ranks, strict=True)):
            rest = without(rest, self.joint_basis)
            if self.orthogonal and not first:
                for j, rows in enumerate(self.bases):
                    rest = rest if j == i else without(rest, rows)
            u, sigma, vt = truncate(rest, rank)
            vt = self._real(sigma, vt)
            if first:
                self.bases.append(vt)
            else:
                self.bases[i] = vt
            parts.append((u * sigma) @ vt)
        return self._separated(parts) if self.orthogonal and first else parts

    def _separated(self, parts: list[torch.Tensor]) -> list[torch.Tensor]:
        """The first orthogonal round: each part leaves the others' row spaces only after all are known."""
        for i, part in enumerate(parts):
            for j, rows in enumerate(self.bases):
                part = part if j == i else without(part, rows)
            parts[i] = part
        self.bases = [self._real(*truncate(part, rank)[1:]) for part, rank in zip(parts, self.ranks, strict=True)]
        return parts

    def _real(self, sigma: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Rows of an SVD, zero where sigma is rounding: what they would take from other parts depends on chance."""
        return rows * (sigma > _ROUNDING * self._size)[:, None]
