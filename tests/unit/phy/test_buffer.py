"""The window over the stream: what is read is what was written, and memory stays bounded."""

import numpy as np

from multisc.phy.buffer import SampleBuffer


def numbers(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.float32).astype(np.complex64)


def test_views_stay_as_they_are_while_samples_come_and_go() -> None:
    buffer = SampleBuffer()
    kept: list[tuple[int, np.ndarray]] = []
    rng = np.random.default_rng(1)
    for _ in range(400):
        end = buffer.end
        buffer.append(numbers(end, int(rng.integers(1, 9000))))
        start = max(0, buffer.end - 12_000)
        kept.append((start, buffer.view(start, buffer.end - start)))
        kept = kept[-8:]
        for first, view in kept:
            assert np.array_equal(view, numbers(first, view.size))
        buffer.release(buffer.end - 21_000)
    assert buffer.capacity <= 1 << 19


def test_what_is_released_or_never_came_reads_as_zero() -> None:
    buffer = SampleBuffer()
    buffer.append(numbers(1, 100))
    buffer.release(40)
    expected = np.zeros(130, np.complex64)
    expected[50:110] = numbers(41, 60)
    assert np.array_equal(buffer.view(-10, 130), expected)
    assert not buffer.view(200, 10).any()
