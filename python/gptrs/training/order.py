"""Which window of a token stream is the k-th that a run trains on: a formula, so nothing is kept.

    k ─► epoch, place in it ─► which window of the epoch (a permutation) ─► its first token

    tokens    0 1 2 3 4 5 6 7 8 9 10       windows of 4, end to end
    epoch 0   [0 1 2 3][4 5 6 7]           as `WindowLoader` has them, and in its order
    epoch 1     [1 2 3 4][5 6 7 8]         from another first token, so that cuts lie elsewhere

Every window of an epoch comes once, before the next epoch begins. The permutation is the loader's
(rust/gptrs-core/src/shuffle.rs), computed for many places at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ORDER_VERSION = 1
"""Changes with any place of any order; a run is resumed only in its own."""

_KEY = int.from_bytes(b"shuffle1", "big")
_PHASE_BLOCK = 2
"""Philox's block behind those that the permutation's keys are from."""
_FEWEST_BITS = 6
_WORD = 1 << 64


class WindowOrder:
    """The order of windows of `length` tokens in a stream of `num_tokens`, without end.

    Args:
        num_tokens: at least length + 1: a window needs its last target.
    """

    def __init__(self, num_tokens: int, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        self._room = num_tokens - length
        self.first_epoch = -(-self._room // length)
        """Windows in epoch 0."""
        # From any first token there is room for so many: all later epochs have equally many.
        self.later_epochs = max(1, self.first_epoch - 1)

    def starts(self, first: int, stop: int) -> NDArray[np.int64]:
        """The first tokens of windows first..stop - 1 of the run, int64 [stop - first]."""
        parts = [np.empty(0, dtype=np.int64)]
        while first < stop:
            epoch, place, size = self._place(first)
            count = min(stop - first, size - place)
            places = np.arange(place, place + count, dtype=np.uint64)
            windows = permuted(places, size, self.seed, epoch).astype(np.int64)
            parts.append(self._phase(epoch) + windows * self.length)
            first += count
        return np.concatenate(parts)

    def epoch_of(self, window: int) -> float:
        """How many epochs were seen before this window of the run."""
        epoch, place, size = self._place(window)
        return epoch + place / size

    def _place(self, window: int) -> tuple[int, int, int]:
        """The epoch of a window of the run, its place there, and how many that epoch has."""
        if window < self.first_epoch:
            return 0, window, self.first_epoch
        later, place = divmod(window - self.first_epoch, self.later_epochs)
        return 1 + later, place, self.later_epochs

    def _phase(self, epoch: int) -> int:
        """The token that the first window of an epoch starts with."""
        if epoch == 0:
            return 0
        choices = min(self.length, self._room - (self.later_epochs - 1) * self.length)
        return int(_philox(self.seed, epoch, _PHASE_BLOCK)[0]) % choices


def permuted(places: NDArray[np.uint64], n: int, seed: int, epoch: int) -> NDArray[np.uint64]:
    """The numbers at `places`, each in 0..n - 1, of the epoch's permutation of 0..n - 1.

    A Feistel network of six rounds; what falls outside is put in again.
    """
    bits = max((n - 1).bit_length(), _FEWEST_BITS)
    right_bits = np.uint64(bits - bits // 2)
    left_mask = np.uint64((1 << (bits // 2)) - 1)
    right_mask = np.uint64((1 << int(right_bits)) - 1)
    keys = np.concatenate([_philox(seed, epoch, 0), _philox(seed, epoch, 1)[:2]])
    numbers = places.copy()
    outside = np.arange(len(numbers))
    while len(outside):
        left, right = numbers[outside] >> right_bits, numbers[outside] & right_mask
        for first, second in keys.reshape(3, 2):
            left ^= _mix(right + first) & left_mask
            right ^= _mix(left + second) & right_mask
        numbers[outside] = left << right_bits | right
        outside = outside[numbers[outside] >= n]
    return numbers


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea and Flood, 2014); overflow is meant."""
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = words ^ words >> np.uint64(31)
    return mixed


def _philox(seed: int, epoch: int, block: int) -> NDArray[np.uint64]:
    """Four words of Philox4x64-10 for the counter (epoch, block, 0, 0)."""
    counter = epoch + block * _WORD
    # NumPy counts before it draws.
    before = (counter - 1) % _WORD**4
    generator = np.random.Philox(key=seed + _KEY * _WORD, counter=before)
    words: NDArray[np.uint64] = generator.random_raw(4)
    return words
