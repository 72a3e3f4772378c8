"""The inner loops of the LDPC decoders, compiled by Numba.

Layout: a group of G code words is decoded together; lane ``r * G + g`` of a block is bit r of code word g, so a
circulant rotates whole vectors and every inner loop runs over contiguous lanes without a gather. Each block column
holds its lanes twice in a row, which makes a rotated read one contiguous read.

The data type of the work arrays chooses the check-node rule: int16 the min-sum family, float32 sum-product.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.core.errors import TypingError
from numba.extending import overload

# Fixed point of the min-sum family: LLR units per step, largest channel value, largest posterior.
STEPS_PER_LLR = 16
CHANNEL_LIMIT = 2047
POSTERIOR_LIMIT = 16000
MESSAGE_LIMIT = 8000
MIN_SUM, OFFSET_MIN_SUM, NORMALISED_MIN_SUM, SUM_PRODUCT = 0, 1, 2, 3
OFFSET = STEPS_PER_LLR // 2  # half an LLR unit

# Sum-product: largest magnitude that takes part; e^-60 is far below what a decision can feel.
MAX_LLR = 60.0
KNOWN_LLR = 1.0e4

PUNCTURED = -1
KNOWN_ZERO = -2


@njit(inline="always", error_model="numpy")
def _exp_of_minus(x):  # type: ignore[no-untyped-def]
    """e^-x of a float32 0 <= x <= 80 to about 2e-7 relative, in operations that vectorise."""
    y = x * np.float32(-1.4426950408889634)
    n = np.int32(y - np.float32(0.5))
    f = y - np.float32(n)
    p = np.float32(1.5403530e-4)
    p = p * f + np.float32(1.3333558e-3)
    p = p * f + np.float32(9.6181291e-3)
    p = p * f + np.float32(5.5504109e-2)
    p = p * f + np.float32(2.4022651e-1)
    p = p * f + np.float32(6.9314718e-1)
    p = p * f + np.float32(1.0)
    return np.int32((n + np.int32(127)) << np.int32(23)).view(np.float32) * p


@njit(inline="always", error_model="numpy")
def _minus_log(x):  # type: ignore[no-untyped-def]
    """-ln x of a normal positive float32, in operations that vectorise."""
    bits = np.float32(x).view(np.int32)
    # Mantissa into [sqrt(1/2), sqrt(2)): the series in (m-1)/(m+1) then needs four terms.
    e = np.int32((bits - np.int32(0x3F3504F3)) >> np.int32(23))
    m = np.int32(bits - (e << np.int32(23))).view(np.float32)
    s = (m - np.float32(1.0)) / (m + np.float32(1.0))
    q = s * s
    p = np.float32(2.0 / 9.0)
    p = p * q + np.float32(2.0 / 7.0)
    p = p * q + np.float32(2.0 / 5.0)
    p = p * q + np.float32(2.0 / 3.0)
    p = p * q + np.float32(2.0)
    return np.float32(e) * np.float32(-0.6931471805599453) - s * p


@njit(nogil=True)
def _min_sum_node(t, messages, degree, lanes, work, rule, limit):  # type: ignore[no-untyped-def]
    """Replace messages[:degree] by the min-sum answer to the inputs t[:degree]; each (degree, lanes)."""
    low, second, sign, low_out, second_out = work[0], work[1], work[2], work[3], work[4]
    for i in range(lanes):
        low[i] = limit
        second[i] = limit
        sign[i] = 0
    for k in range(degree):
        x = t[k]
        for i in range(lanes):
            v = x[i]
            a = np.int16(abs(v))
            sign[i] ^= v
            second[i] = min(second[i], max(low[i], a))
            low[i] = min(low[i], a)
    if rule == OFFSET_MIN_SUM:
        for i in range(lanes):
            low_out[i] = max(np.int16(low[i] - np.int16(OFFSET)), np.int16(0))
            second_out[i] = max(np.int16(second[i] - np.int16(OFFSET)), np.int16(0))
    elif rule == NORMALISED_MIN_SUM:
        for i in range(lanes):
            low_out[i] = np.int16(np.int16(low[i] * np.int16(3)) >> np.int16(2))
            second_out[i] = np.int16(np.int16(second[i] * np.int16(3)) >> np.int16(2))
    else:
        for i in range(lanes):
            low_out[i] = low[i]
            second_out[i] = second[i]
    for k in range(degree):
        x = t[k]
        y = messages[k]
        for i in range(lanes):
            # Both loads before the choice: only then does the loop vectorise.
            v, p, q = x[i], second_out[i], low_out[i]
            m = p if np.int16(abs(v)) == low[i] else q
            s = np.int16(np.int16(sign[i] ^ v) >> np.int16(15))
            y[i] = np.int16(np.int16(m ^ s) - s)


# error_model="numpy": the check for a zero divisor would keep the loops from vectorising.
@njit(nogil=True, error_model="numpy", fastmath={"contract", "nsz", "nnan", "ninf"})
def _sum_product_node(t, messages, degree, lanes, work, rule, limit):  # type: ignore[no-untyped-def]
    """As above for the exact rule.

    In g = e^-|L| the rule for two inputs is (g + h) / (1 + g h), which loses no accuracy at large L; a forward and a
    backward pass give each output the combination of all other inputs.
    """
    backward, sign = work[degree], work[degree + 1]
    for i in range(lanes):
        sign[i] = np.float32(1.0)
    for k in range(degree):
        x = t[k]
        y = messages[k]
        for i in range(lanes):
            v = x[i]
            y[i] = _exp_of_minus(min(abs(v), limit))
            sign[i] = -sign[i] if v < 0 else sign[i]
    forward = work[0]
    for i in range(lanes):
        forward[i] = messages[0, i]
        backward[i] = messages[degree - 1, i]
    for k in range(1, degree - 1):
        before, after, y = work[k - 1], work[k], messages[k]
        for i in range(lanes):
            after[i] = (before[i] + y[i]) / (np.float32(1.0) + before[i] * y[i])
    last = messages[degree - 1]
    others = work[degree - 2]
    for i in range(lanes):
        last[i] = others[i]
    for j in range(degree - 2):
        y, before = messages[degree - 2 - j], work[degree - 3 - j]
        for i in range(lanes):
            own, a, b = y[i], before[i], backward[i]
            y[i] = (a + b) / (np.float32(1.0) + a * b)
            backward[i] = (own + b) / (np.float32(1.0) + own * b)
    first = messages[0]
    for i in range(lanes):
        first[i] = backward[i]
    for k in range(degree):
        x, y = t[k], messages[k]
        for i in range(lanes):
            magnitude = _minus_log(y[i])
            y[i] = sign[i] * (-magnitude if x[i] < 0 else magnitude)


def _check_node(t, messages, degree, lanes, work, rule, limit):  # type: ignore[no-untyped-def]
    raise NotImplementedError("compiled code only")


@overload(_check_node, inline="never")
def _check_node_compiled(t, messages, degree, lanes, work, rule, limit):  # type: ignore[no-untyped-def]
    if t.dtype == types.int16:
        return lambda t, messages, degree, lanes, work, rule, limit: _min_sum_node(
            t, messages, degree, lanes, work, rule, limit
        )
    if t.dtype == types.float32:
        return lambda t, messages, degree, lanes, work, rule, limit: _sum_product_node(
            t, messages, degree, lanes, work, rule, limit
        )
    raise TypingError("work arrays must be int16 or float32")


def _quantise(like, llr, out):  # type: ignore[no-untyped-def]
    raise NotImplementedError("compiled code only")


@overload(_quantise)
def _quantise_compiled(like, llr, out):  # type: ignore[no-untyped-def]
    """Channel values of one code word; NaN becomes 0, which is erased."""
    if like.dtype == types.int16:

        def fixed(like, llr, out):  # type: ignore[no-untyped-def]
            bound = np.float32(CHANNEL_LIMIT)
            for i in range(llr.size):
                v = llr[i] * np.float32(STEPS_PER_LLR)
                v = v if v == v else np.float32(0.0)
                v = min(max(v, -bound), bound)
                out[i] = np.int16(np.int32(v + np.float32(CHANNEL_LIMIT + 1.5)) - np.int32(CHANNEL_LIMIT + 1))

        return fixed

    def floating(like, llr, out):  # type: ignore[no-untyped-def]
        bound = np.float32(MAX_LLR)
        for i in range(llr.size):
            v = llr[i] if llr[i] == llr[i] else np.float32(0.0)
            out[i] = min(max(v, -bound), bound)

    return floating


def _integers(block):  # type: ignore[no-untyped-def]
    raise NotImplementedError("compiled code only")


@overload(_integers)
def _integers_compiled(block):  # type: ignore[no-untyped-def]
    """The same memory as integers whose sign is the sign of the value."""
    if block.dtype == types.int16:
        return lambda block: block
    return lambda block: block.view(np.int32)


@njit(nogil=True)
def _load(block, llr, source, first, count, group, z, rotation, like, values):  # type: ignore[no-untyped-def]
    """Fill the lanes of every column from the LLRs of code words first .. first+count-1, rotated per column."""
    lanes = z * group
    known, erased = like[0], like.dtype.type(0)
    for g in range(group):
        if g < count:
            _quantise(like, llr[first + g], values)
        for c in range(block.shape[0]):
            x = block[c]
            turn = rotation[c]
            r = z - turn
            for b in range(z):
                if b == turn:
                    r = 0
                s = source[c * z + b]
                value = erased
                if s == KNOWN_ZERO or g >= count:
                    value = known
                elif s >= 0:
                    value = values[s]
                x[r * group + g] = value
                r += 1
    for c in range(block.shape[0]):
        x = block[c]
        for i in range(lanes):
            x[lanes + i] = x[i]


@njit(nogil=True)
def _parity(signs, row_start, column, shift, group, z, open_words, total, failed):  # type: ignore[no-untyped-def]
    """Set failed[g] for code words with an unsatisfied check; stops as soon as every open word has one."""
    lanes = z * group
    failed[:] = False
    for row in range(row_start.size - 1):
        for i in range(lanes):
            total[i] = 0
        for e in range(row_start[row], row_start[row + 1]):
            d = shift[e] * group
            x = signs[column[e], d : d + lanes]
            for i in range(lanes):
                total[i] ^= x[i]
        bad = total[0]
        for i in range(lanes):
            bad |= total[i]
        if bad < 0:
            for r in range(z):
                for g in range(group):
                    failed[g] |= total[r * group + g] < 0
            going = False
            for g in range(group):
                going |= open_words[g] and not failed[g]
            if not going:
                return


@njit(nogil=True)
def _store(signs, bits, first, open_words, failed, finished, group, z, rotation):  # type: ignore[no-untyped-def]
    """Write the hard decisions of the open words that are finished."""
    for g in range(group):
        if open_words[g] and (finished or not failed[g]):
            out = bits[first + g]
            for c in range((out.size + z - 1) // z):
                # The lanes repeat, so from bit 0's place on the bits follow one another.
                x = signs[c]
                begin = (z - rotation[c]) * group + g
                for r in range(min(z, out.size - c * z)):
                    out[c * z + r] = x[begin + r * group] < 0


@njit(nogil=True)
def _conclude(signs, bits, ok, used, first, open_words, failed, iteration, finished, group, z, rotation):  # type: ignore[no-untyped-def]
    """Book the words whose checks hold, or all when finished; tell whether any is left."""
    _store(signs, bits, first, open_words, failed, finished, group, z, rotation)
    going = False
    for g in range(group):
        if open_words[g]:
            ok[first + g] = not failed[g]
            used[first + g] = iteration + 1
            open_words[g] = failed[g]
            going |= failed[g]
    return going and not finished


@njit(cache=True, nogil=True)
def decode_layered(  # type: ignore[no-untyped-def]
    llr,
    source,
    bits,
    ok,
    used,
    row_start,
    column,
    step,
    check_shift,
    rotation,
    z,
    group,
    rule,
    iterations,
    early,
    like,
    limit,
):
    """Row-layered schedule: each block row works on posteriors that already hold what the rows before it found."""
    lanes = z * group
    padded = (lanes + 63) // 64 * 64
    degree = np.max(row_start[1:] - row_start[:-1])
    dtype = like.dtype
    posterior = np.zeros((rotation.size, 2 * padded), dtype)
    messages = np.zeros((column.size, padded), dtype)
    t = np.zeros((degree, padded), dtype)
    work = np.zeros((max(degree + 2, 5), padded), dtype)
    signs = _integers(posterior)
    total = np.zeros(lanes, signs.dtype)
    values = np.zeros(llr.shape[1], dtype)
    failed = np.zeros(group, np.bool_)
    open_words = np.zeros(group, np.bool_)
    bound, lowest = like[1], like[2]
    for first in range(0, llr.shape[0], group):
        count = min(group, llr.shape[0] - first)
        _load(posterior, llr, source, first, count, group, z, rotation, like, values)
        for e in range(column.size):
            y = messages[e]
            for i in range(padded):
                y[i] = 0
        for g in range(group):
            open_words[g] = g < count
        for iteration in range(iterations):
            for row in range(row_start.size - 1):
                begin, end = row_start[row], row_start[row + 1]
                for e in range(begin, end):
                    x = posterior[column[e], step[e] * group : step[e] * group + padded]
                    y = messages[e]
                    v = t[e - begin]
                    for i in range(padded):
                        v[i] = x[i] - y[i]
                _check_node(t, messages[begin:end], end - begin, padded, work, rule, limit)
                for e in range(begin, end):
                    y = messages[e]
                    v = t[e - begin]
                    x, again = posterior[column[e]], posterior[column[e], lanes:]
                    for i in range(padded):
                        v[i] = min(max(dtype.type(v[i] + y[i]), lowest), bound)
                    for i in range(padded):
                        x[i] = v[i]
                    for i in range(padded):
                        again[i] = v[i]
            finished = iteration + 1 == iterations
            if early or finished:
                _parity(signs, row_start, column, check_shift, group, z, open_words, total, failed)
                if not _conclude(
                    signs, bits, ok, used, first, open_words, failed, iteration, finished, group, z, rotation
                ):
                    break


@njit(cache=True, nogil=True)
def decode_flooding(  # type: ignore[no-untyped-def]
    llr, source, bits, ok, used, row_start, column, shift, z, group, rule, iterations, early, like, limit
):
    """Flooding schedule: every check answers the posteriors of the iteration before."""
    lanes = z * group
    padded = (lanes + 63) // 64 * 64
    degree = np.max(row_start[1:] - row_start[:-1])
    columns = source.size // z
    dtype = like.dtype
    channel = np.zeros((columns, 2 * padded), dtype)
    posterior = np.zeros((columns, 2 * padded), dtype)
    sums = np.zeros((columns, 2 * padded), dtype)
    messages = np.zeros((column.size, padded), dtype)
    t = np.zeros((degree, padded), dtype)
    work = np.zeros((max(degree + 2, 5), padded), dtype)
    signs = _integers(posterior)
    total = np.zeros(lanes, signs.dtype)
    values = np.zeros(llr.shape[1], dtype)
    failed = np.zeros(group, np.bool_)
    open_words = np.zeros(group, np.bool_)
    rotation = np.zeros(columns, np.int32)
    bound, lowest = like[1], like[2]
    for first in range(0, llr.shape[0], group):
        count = min(group, llr.shape[0] - first)
        _load(channel, llr, source, first, count, group, z, rotation, like, values)
        for c in range(columns):
            x, out = channel[c], posterior[c]
            for i in range(2 * lanes):
                out[i] = x[i]
        for e in range(column.size):
            y = messages[e]
            for i in range(padded):
                y[i] = 0
        for g in range(group):
            open_words[g] = g < count
        for iteration in range(iterations):
            for c in range(columns):
                a = sums[c]
                for i in range(2 * lanes):
                    a[i] = 0
            for row in range(row_start.size - 1):
                begin, end = row_start[row], row_start[row + 1]
                for e in range(begin, end):
                    x = posterior[column[e], shift[e] * group : shift[e] * group + padded]
                    y = messages[e]
                    v = t[e - begin]
                    for i in range(padded):
                        v[i] = x[i] - y[i]
                _check_node(t, messages[begin:end], end - begin, padded, work, rule, limit)
                for e in range(begin, end):
                    y = messages[e]
                    a = sums[column[e], shift[e] * group : shift[e] * group + lanes]
                    for i in range(lanes):
                        a[i] += y[i]
            for c in range(columns):
                a, b, x = sums[c, :lanes], sums[c, lanes : 2 * lanes], channel[c, :lanes]
                out, again = posterior[c, :lanes], posterior[c, lanes : 2 * lanes]
                for i in range(lanes):
                    out[i] = min(max(a[i] + b[i] + x[i], lowest), bound)
                for i in range(lanes):
                    again[i] = out[i]
            finished = iteration + 1 == iterations
            if early or finished:
                _parity(signs, row_start, column, shift, group, z, open_words, total, failed)
                if not _conclude(
                    signs, bits, ok, used, first, open_words, failed, iteration, finished, group, z, rotation
                ):
                    break
