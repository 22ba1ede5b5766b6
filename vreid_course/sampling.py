"""Which frames make a clip, and which tracklets make a batch.

Frame samplers share one call, `sampler(length, rng)`: a tracklet's number of frames, and a NumPy
generator for training or None for testing, when the choice is fixed (the middle). They return frame
numbers in 0..length-1, int64 (T,). Fix the other arguments with `functools.partial`.
"""

from collections.abc import Iterator
from itertools import count

import numpy as np

Rng = np.random.Generator | None


def _start(room: int, rng: Rng) -> int:
    """A start in 0..room: any of them in training, the middle one in testing."""
    return int(rng.integers(room + 1)) if rng is not None else room // 2


def consecutive(length: int, rng: Rng = None, frames: int = 4) -> np.ndarray:
    """`frames` adjacent frames; a shorter tracklet is repeated from its start (COSAM, GLTR)."""
    return (_start(max(length - frames, 0), rng) + np.arange(frames)) % length


def strided(
    length: int, rng: Rng = None, frames: int = 4, stride: int = 8, short: str = "distinct"
) -> np.ndarray:
    """Every `stride`-th frame (TKP). A tracklet is short with less than frames * stride frames.

    short="repeat" (the paper) repeats the tracklet until it is long enough; short="distinct" (the
    authors' code) draws distinct frames, in order, or with replacement where there are too few.
    """
    if short not in ("repeat", "distinct"):
        raise ValueError(f'short={short!r}: say "repeat" or "distinct"')
    if length < frames * stride and short == "distinct":
        return anywhere(length, rng, frames)
    room = max(length, frames * stride) - ((frames - 1) * stride + 1)
    return (_start(room, rng) + stride * np.arange(frames)) % length


def spread(length: int, rng: Rng = None, frames: int = 8) -> np.ndarray:
    """One frame of each of `frames` equal chunks: any in training, the middle one in testing."""
    first = np.arange(frames) * length // frames
    last = np.arange(1, frames + 1) * length // frames  # exclusive
    room = np.maximum(last - first - 1, 0)  # an empty chunk of a short tracklet takes its start
    return first + (rng.integers(room + 1) if rng is not None else room // 2)


def anywhere(length: int, rng: Rng = None, frames: int = 8) -> np.ndarray:
    """Distinct frames from anywhere, in order; with replacement where there are too few."""
    if rng is None:
        return spread(length, None, frames)
    return np.sort(rng.choice(length, frames, replace=length < frames))


def clips(length: int, rng: Rng = None, frames: int = 32, pad: bool = False) -> list[np.ndarray]:
    """For testing: all frames, cut into clips of `frames`; the last is what remains.

    With pad the last is filled up by cycling its own frames (COSAM). rng is not used.
    """
    cut = [np.arange(start, min(start + frames, length)) for start in range(0, length, frames)]
    if pad:
        cut[-1] = np.resize(cut[-1], frames)
    return cut


def whole(length: int, rng: Rng = None) -> np.ndarray:
    """For testing: the whole tracklet as one clip (GLTR). rng is not used."""
    return np.arange(length)


class IdentityBatches:
    """Batches of P identities with K tracklets each; an epoch shows every identity once.

    pids: (N,) int64, the identity of each tracklet. An identity with less than K tracklets gives
    some of them twice. (To show every tracklet once instead: pids np.arange(N) and K 1.)
    groups: (N,) int64, the hard group of each tracklet's identity, or for who is in none a number
    of its own: identities of one group are always in one batch.
    """

    def __init__(
        self, pids: np.ndarray, P: int, K: int, seed: int = 0, groups: np.ndarray | None = None
    ) -> None:
        self.P, self.K, self.seed = P, K, seed
        people, where = np.unique(pids, return_index=True)
        self.rows = [np.flatnonzero(pids == pid) for pid in people]
        group = people if groups is None else groups[where]
        self.units = [np.flatnonzero(group == g) for g in np.unique(group)]  # positions in rows
        largest = max(map(len, self.units), default=0)
        if len(people) < P or largest > P:
            raise ValueError(
                f"P={P} does not fit {len(people)} identities with groups of up to {largest}:"
                f" choose P in {largest}..{len(people)}"
            )

    def epoch(self, number: int) -> list[np.ndarray]:
        """The batches of one epoch: int64 (P*K,) tracklet rows, the K of an identity together.

        Identities that do not fill a last batch are left out, others in every epoch.
        """
        rng = np.random.default_rng((self.seed, number))
        return [
            np.concatenate([rng.choice(rows, self.K, replace=len(rows) < self.K) for rows in batch])
            for batch in self._identities(rng)
        ]

    def from_step(self, start: int) -> Iterator[np.ndarray]:
        """The batches of steps start, start + 1, ..., epoch after epoch without end."""
        for number in count():
            batches = self.epoch(number)
            yield from batches[start:]
            start = max(start - len(batches), 0)

    def _identities(self, rng: np.random.Generator) -> list[list[np.ndarray]]:
        """Put the units, in random order, each into the first batch with room for all of it."""
        batches: list[list[np.ndarray]] = []
        for i in rng.permutation(len(self.units)):
            unit = [self.rows[person] for person in self.units[i]]
            room = (batch for batch in batches if len(batch) + len(unit) <= self.P)
            batch = next(room, None)
            if batch is None:
                batches.append(batch := [])
            batch.extend(unit)
        full = [batch for batch in batches if len(batch) == self.P]
        if not full:
            raise ValueError(f"the groups fill no batch of P={self.P}: choose another P")
        return full
