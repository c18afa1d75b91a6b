r"""Block-wise quantization: the fast code against the loop, properties over any shape, and published statistics."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lora_edu import FP4, INT4_ASYMMETRIC, NF4, Q4_0, Codebook, QuantizedTensor, blockwise, dequantize, quantize
from lora_edu.blockwise import dequantize_range, dequantize_spec, quantize_spec

ORDERS = ("low-first", "high-first")
DTYPES = (np.float16, np.float32, np.float64)
INT4 = Codebook("int4", np.arange(-8, 8) / 8)  # no level +1: a codebook unlike NF4

orders = st.sampled_from(ORDERS)
block_sizes = st.integers(1, 100)
shapes = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=9)
chunks = st.sampled_from([1, 2, 7, 64, 2**18])  # scratch lengths; the real one and some that end inside everything


@st.composite
def weights(draw, dtypes=DTYPES):
    r"""Arrays that hit what a rule could miss: zero blocks, denormals, huge and tiny scales, values on the bounds."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    shape = draw(shapes)
    kind = draw(st.sampled_from(["normal", "scales", "bounds", "any", "zeros"]))
    if kind == "any":
        width = min(32, 8 * dtype.itemsize)  # a float64 has to fit into float32
        return draw(hnp.arrays(dtype, shape, elements=st.floats(width=width, allow_nan=False, allow_infinity=False)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    w = rng.normal(size=shape)
    if kind == "scales":
        w *= 10.0 ** rng.integers(-44, 36, shape)
    elif kind == "bounds":
        scale = 2.0 ** rng.integers(-9, 5)
        w = scale * rng.choice([*NF4.bounds, *NF4.levels, 0.0, -0.0], shape)
    elif kind == "zeros":
        w *= rng.random(shape) < 0.03
    limit = np.finfo(np.float16 if dtype == np.float16 else np.float32).max
    return np.clip(w, -float(limit), float(limit)).astype(dtype)


def same(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    return a.packed.tobytes() == b.packed.tobytes() and a.absmax.tobytes() == b.absmax.tobytes()


def block_maxima(w, block_size):
    flat = np.abs(w.astype(np.float32).ravel())
    return np.array([flat[i : i + block_size].max() for i in range(0, flat.size, block_size)])


# --- the fast form is the loop


@given(weights(), block_sizes, orders, st.sampled_from([NF4, INT4, FP4, Q4_0, INT4_ASYMMETRIC]), chunks)
@settings(max_examples=300, deadline=None)
def test_the_fast_form_equals_the_loop_byte_for_byte(w, block_size, order, codebook, chunk):
    if codebook.scale == "min-max":
        assume(np.ptp(w.astype(np.float64)) < np.finfo(np.float32).max)
    spec = quantize_spec(w, block_size, codebook, order)
    with patch.object(blockwise, "CHUNK", chunk):
        fast = quantize(w, block_size, codebook, order)
        back = dequantize(fast)
    assert same(fast, spec)
    assert (fast.shape, fast.dtype, fast.block_size) == (spec.shape, spec.dtype, spec.block_size)
    assert back.tobytes() == dequantize_spec(spec).tobytes()


def searched(w, block_size):
    r"""Codes by binary search over the whole weight at once; for lengths that are whole blocks."""
    blocks = w.reshape(-1, block_size)
    scales = np.maximum(np.abs(blocks).max(1), np.float32(1e-10))
    return np.searchsorted(NF4.bounds, blocks * (1 / scales)[:, None]).astype(np.uint8), scales


@pytest.mark.parametrize("block_size", [45, 64, 513, 2**18 + 2])
def test_a_weight_longer_than_a_chunk_is_quantized_as_one(block_size):
    w = np.random.default_rng(0).normal(size=(2 * (blockwise.CHUNK // 512) + 3, 513)).astype(np.float32)
    assert w.size > 2 * blockwise.CHUNK
    q = quantize(w, block_size)
    whole = w.size // block_size * block_size
    codes, scales = searched(w.ravel()[:whole], block_size)
    assert np.array_equal(q.codes().ravel()[:whole], codes.ravel())
    assert q.absmax[: len(scales)].tobytes() == scales.tobytes()
    values = NF4.levels[q.codes().ravel()] * np.repeat(q.absmax, block_size)[: w.size]
    assert dequantize(q).tobytes() == values.tobytes()


def test_scratch_memory_does_not_grow_with_the_weight():
    import tracemalloc

    def peak(columns):
        w = np.ones((4096, columns), np.float32)
        out = np.empty_like(w)
        q = quantize(w)
        tracemalloc.start()
        dequantize(quantize(w), out)
        high = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return high - q.nbytes

    small, large = peak(128), peak(512)
    assert large < 1.1 * small
    assert large < 4e6  # bytes: a few arrays of one chunk


# --- ties


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("codebook", [NF4, INT4], ids=lambda codebook: codebook.name)
def test_a_tie_takes_the_lower_code(order, codebook):
    for exponent in (-20, 0, 13):  # a power of two keeps bound · absmax and its way back exact
        w = np.float32(2.0**exponent) * np.append(codebook.bounds, np.float32(1))
        assert quantize(w, 16, codebook, order).codes().tolist() == [*range(15), 15]
        assert quantize(-w[::-1], 16, codebook, order).codes()[0] == 0


@pytest.mark.parametrize("order", ORDERS)
def test_one_ulp_above_a_tie_takes_the_upper_code(order):
    above = np.append(np.nextafter(NF4.bounds, np.float32(2)), np.float32(1))
    assert quantize(above, 16, nibble_order=order).codes().tolist() == [*range(1, 16), 15]
    below = np.append(np.nextafter(NF4.bounds, np.float32(-2)), np.float32(1))
    assert quantize(below, 16, nibble_order=order).codes().tolist() == [*range(15), 15]


def test_the_nearest_level_by_subtraction_breaks_the_tie_rule():
    wrong = np.abs(NF4.bounds[:, None] - NF4.levels).argmin(1)  # what a first attempt does
    assert np.flatnonzero(wrong != np.arange(15)).tolist() == [0, 1, 3, 4, 12, 14]


@given(weights(), block_sizes, orders)
@settings(max_examples=60, deadline=None)
def test_no_other_level_is_nearer(w, block_size, order):
    q = quantize(w, block_size, nibble_order=order)
    scales = np.repeat(block_maxima(w, block_size), block_size)[: w.size].astype(np.float64)
    safe = scales > 1e-9  # above the floors of both layouts
    assume(safe.any())
    ratio = w.astype(np.float32).ravel()[safe].astype(np.float64) / scales[safe]
    distance = np.abs(ratio[:, None] - NF4.levels.astype(np.float64))  # (n, 16)
    chosen = np.take_along_axis(distance, q.codes().ravel()[safe, None].astype(int), 1)[:, 0]
    assert (chosen <= distance.min(1) + 3e-7).all()  # rounding of the ratio: two ulp of 1


# --- what is kept exactly


@given(weights(), block_sizes, orders)
@settings(max_examples=80, deadline=None)
def test_the_largest_weight_of_a_block_comes_back_exactly_and_keeps_its_sign(w, block_size, order):
    q = quantize(w, block_size, nibble_order=order)
    flat, back = w.astype(np.float32).ravel(), dequantize(q).astype(np.float32).ravel()
    floor = blockwise.LAYOUTS[order].smallest_scale
    for block, largest in enumerate(block_maxima(w, block_size)):
        if largest >= np.float32(floor):
            part = slice(block * block_size, (block + 1) * block_size)
            at = np.abs(flat[part]) == largest
            assert np.array_equal(back[part][at], flat[part][at])
            assert set(q.codes().ravel()[part][at]) <= {0, 15}
            assert q.absmax[block] == largest


def test_a_block_whose_largest_weight_is_negative_takes_the_level_minus_one():
    q = quantize(np.array([-3.0, 1.0], np.float32))
    assert q.absmax.tolist() == [3]
    assert q.codes()[0] == 0
    assert dequantize(q)[0] == -3


@given(weights(), block_sizes, orders)
@settings(max_examples=60, deadline=None)
def test_zeros_stay_zero(w, block_size, order):
    back = dequantize(quantize(w, block_size, nibble_order=order))
    assert not back[w == 0].any()


@pytest.mark.parametrize(("order", "stored", "last"), [("low-first", 1e-10, 0x07), ("high-first", 0.0, 0x77)])
def test_a_block_of_zeros_is_stored_as_its_layout_says(order, stored, last):
    w = np.zeros(9, np.float32)
    q = quantize(w, 4, nibble_order=order)
    tail = max(stored, float(np.float32(1e-38)))  # a short last block always stores the floor
    assert q.absmax.tolist() == np.array([stored, stored, tail], np.float32).tolist()
    assert q.packed.tolist() == [0x77] * 4 + [last]
    assert dequantize(q).tobytes() == w.tobytes()


def test_a_short_last_block_is_divided_where_a_full_one_is_multiplied_by_the_reciprocal():
    rng = np.random.default_rng(4)
    # Values beside a bound, of which the two roundings lead to different sides.
    scale = rng.uniform(1, 2, 4000).astype(np.float32)
    value = NF4.bounds[rng.integers(0, 15, 4000)] * scale
    divided = np.searchsorted(NF4.bounds, value / scale)
    multiplied = np.searchsorted(NF4.bounds, value * (np.float32(1) / scale))
    differ = np.flatnonzero(divided != multiplied)
    assert len(differ) > 100
    for i in differ[:50]:
        for order in ORDERS:
            w = np.array([scale[i], value[i]])
            assert quantize(w, 2, nibble_order=order).codes()[1] == multiplied[i]
            assert quantize(w, 3, nibble_order=order).codes()[1] == divided[i]


# --- round trip


@given(weights(dtypes=(np.float32, np.float64)), block_sizes, orders)
@settings(max_examples=300, deadline=None)
def test_quantizing_what_came_back_changes_nothing(w, block_size, order):
    r"""True of every float32 weight, except full blocks below 1e-38 in the layout of bitsandbytes."""
    full = block_maxima(w, block_size)[: w.size // block_size]
    assume(order == "low-first" or not ((full > 0) & (full < np.float32(1e-38))).any())
    q = quantize(w, block_size, nibble_order=order)
    back = dequantize(q)
    again = quantize(back, block_size, nibble_order=order)
    assert same(again, q)
    assert dequantize(again).tobytes() == back.tobytes()


@given(weights(dtypes=(np.float16,)), block_sizes, orders)
@settings(max_examples=80, deadline=None)
def test_quantizing_float16_that_came_back_changes_nothing_outside_one_block_maximum(w, block_size, order):
    assume(5 * 2.0**-24 not in block_maxima(w, block_size))
    q = quantize(w, block_size, nibble_order=order)
    assert same(quantize(dequantize(q), block_size, nibble_order=order), q)


@pytest.mark.parametrize("order", ORDERS)
def test_five_times_the_smallest_float16_is_the_only_maximum_whose_block_changes_again(order):
    changed = []
    for k in range(1, 2200):  # every maximum below float16's normal numbers, and some above
        w = (np.arange(-k, k + 1) * 2.0**-24).astype(np.float16)
        q = quantize(w, w.size, nibble_order=order)
        again = quantize(dequantize(q), w.size, nibble_order=order)
        if not same(again, q):
            changed.append(k)
            assert same(quantize(dequantize(again), w.size, nibble_order=order), again)  # it settles then
    assert changed == [5]


def test_a_full_block_below_the_floor_shrinks_in_the_layout_of_bitsandbytes():
    w = np.full(4, 5e-39, np.float32)
    q = quantize(w, 4, nibble_order="high-first")
    assert dequantize(q).max() < w.max()
    assert not same(quantize(dequantize(q), 4, nibble_order="high-first"), q)
    assert dequantize(quantize(w, 4, nibble_order="low-first")).tolist() == [0, 0, 0, 0]  # below a floor of 1e-10


# --- layout


@given(weights(), block_sizes)
@settings(max_examples=60, deadline=None)
def test_the_nibble_order_swaps_the_halves_of_each_byte_and_no_code(w, block_size):
    low, high = quantize(w, block_size), quantize(w, block_size, nibble_order="high-first")
    assume((block_maxima(w, block_size) > 1e-9).all())  # the floors differ
    assert np.array_equal(low.codes(), high.codes())
    swapped = (low.packed >> 4) | (low.packed << 4)
    whole = w.size // 2
    assert np.array_equal(swapped[:whole], high.packed[:whole])
    if w.size % 2:  # the spare nibble: code 0, or the code of zero
        assert low.packed[-1] >> 4 == 0
        assert high.packed[-1] & 15 == 7


def test_packing_by_hand():
    w = np.array([1.0, 0.0, -1.0], np.float32)  # codes 15, 7, 0
    assert quantize(w).packed.tolist() == [0x7F, 0x00]
    assert quantize(w, nibble_order="high-first").packed.tolist() == [0xF7, 0x07]


def test_reading_with_the_other_nibble_order_gives_other_numbers():
    w = np.random.default_rng(5).normal(size=64).astype(np.float32)
    q = quantize(w)
    other = QuantizedTensor(q.packed, q.absmax, q.shape, q.dtype, q.block_size, q.codebook, "high-first")
    assert np.array_equal(other.codes().reshape(-1, 2)[:, ::-1], q.codes().reshape(-1, 2))
    assert not np.array_equal(dequantize(other), dequantize(q))


@given(st.integers(1, 8), st.integers(1, 40), orders, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_moving_whole_blocks_moves_their_codes_and_scales(count, block_size, order, random):
    blocks = np.random.default_rng(random.randrange(2**32)).normal(size=(count, block_size)).astype(np.float32)
    moved = random.sample(range(count), count)
    q, p = (quantize(w, block_size, nibble_order=order) for w in (blocks, blocks[moved]))
    assert np.array_equal(p.codes(), q.codes()[moved])
    assert np.array_equal(p.absmax, q.absmax[moved])


@given(weights(), block_sizes, orders)
@settings(max_examples=40, deadline=None)
def test_memory_order_does_not_matter(w, block_size, order):
    q = quantize(w, block_size, nibble_order=order)
    assert same(quantize(np.asfortranarray(w), block_size, nibble_order=order), q)
    assert same(quantize(np.repeat(w, 2, axis=-1)[..., ::2], block_size, nibble_order=order), q)


@given(weights(), block_sizes, orders)
@settings(max_examples=40, deadline=None)
def test_the_weight_is_read_only_read_and_shape_and_dtype_come_back(w, block_size, order):
    before = w.tobytes()
    w.flags.writeable = False
    q = quantize(w, block_size, nibble_order=order)
    back = dequantize(q)
    assert w.tobytes() == before
    assert (back.shape, back.dtype) == (w.shape, w.dtype) == (q.shape, q.dtype)
    assert q.packed.shape == (-(-w.size // 2),)
    assert q.absmax.shape == (-(-w.size // block_size),)
    assert (q.packed.dtype, q.absmax.dtype) == (np.uint8, np.float32)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_every_dtype_has_the_codes_of_its_float32_and_is_rounded_once(dtype):
    w = np.random.default_rng(6).normal(size=(7, 33)).astype(dtype)
    q, single = quantize(w), quantize(w.astype(np.float32))
    assert same(q, single)
    assert np.array_equal(dequantize(q), dequantize(single).astype(dtype))


def test_a_single_number_may_be_quantized():
    q = quantize(np.float32(-2.5))
    assert dequantize(q).shape == ()
    assert dequantize(q) == -2.5


def test_a_small_numpy_integer_as_block_size_does_not_overflow():
    w = np.random.default_rng(7).normal(size=1000).astype(np.float32)
    assert same(quantize(w, np.uint8(200)), quantize(w, 200))


# --- dequantizing into place, and by ranges


@given(weights(), block_sizes, orders)
@settings(max_examples=40, deadline=None)
def test_dequantizing_into_an_array_fills_and_returns_it(w, block_size, order):
    q = quantize(w, block_size, nibble_order=order)
    out = np.full(w.shape, np.nan, w.dtype)
    returned = dequantize(q, out)
    assert np.shares_memory(returned, out)
    assert out.tobytes() == dequantize(q).tobytes()


kinds = [(NF4, "float32"), (NF4, "double"), (FP4, "double"), (INT4_ASYMMETRIC, "float32")]


@given(weights(), block_sizes, orders, chunks, st.sampled_from(kinds), st.data())
@settings(max_examples=300, deadline=None)
def test_any_range_equals_the_slice_of_the_whole(w, block_size, order, chunk, kind, data):
    start = data.draw(st.integers(0, w.size))
    stop = data.draw(st.integers(start, w.size))
    w = np.clip(w, -3e4, 3e4)  # so that no value leaves the dtype once its scale is rounded
    q = quantize(w, block_size, kind[0], order, kind[1])
    around = np.full(stop - start + 2, -7, w.dtype)
    with patch.object(blockwise, "CHUNK", chunk):
        dequantize_range(q, start, stop, around[1:-1])
    assert around[1:-1].tobytes() == dequantize(q).ravel()[start:stop].tobytes()
    assert (around[0], around[-1]) == (-7, -7)  # nothing is written beside it


# --- what it costs, and the published statistics


@pytest.mark.parametrize(
    ("shape", "block_size", "bits"), [((64, 64), 64, 4.5), ((3, 64), 32, 5), ((128,), 128, 4.25), ((1,), 64, 40)]
)
def test_bits_per_weight_count_codes_and_scales(shape, block_size, bits):
    q = quantize(np.ones(shape, np.float32), block_size)
    assert q.bits_per_weight == bits
    assert q.nbytes == q.packed.nbytes + q.absmax.nbytes


def test_printing_says_what_it_is():
    text = repr(quantize(np.ones((8, 64), np.float32), nibble_order="high-first"))
    assert text == (
        "QuantizedTensor(nf4, shape=(8, 64), dtype=float32, block_size=64, high-first, 4.5 bits per weight)"
    )


@pytest.fixture(scope="module")
def gaussian():
    w = np.random.default_rng(2023).normal(size=2**20).astype(np.float32)
    q = quantize(w, 64)
    return w, q, dequantize(q).astype(np.float64) - w


def test_the_error_on_a_normal_distribution_is_the_published_one(gaussian):
    _, _, error = gaussian
    assert np.mean(error**2) == pytest.approx(0.008460, rel=0.01)
    assert np.mean(np.abs(error)) == pytest.approx(0.07280, rel=0.01)


def test_codes_are_used_unequally_by_five_to_one(gaussian):
    _, q, _ = gaussian
    share = np.bincount(q.codes().ravel(), minlength=16) / q.size
    assert -(share * np.log2(share)).sum() == pytest.approx(3.885, abs=0.005)  # bits, of 4
    assert share.max() / share.min() == pytest.approx(5.3, abs=0.1)
    published = [0.0186, 0.0438, 0.0585, 0.0709, 0.0808, 0.0880, 0.0924, 0.0880]
    published += [0.0811, 0.0782, 0.0733, 0.0666, 0.0582, 0.0480, 0.0363, 0.0173]
    assert np.abs(share - published).max() < 0.001


def test_larger_blocks_have_the_published_error(gaussian):
    w, _, _ = gaussian
    for block_size, mse in ((16, 0.00653), (256, 0.00973), (4096, 0.01208)):
        error = dequantize(quantize(w, block_size)).astype(np.float64) - w
        assert np.mean(error**2) == pytest.approx(mse, rel=0.01)


def test_other_levels_have_another_error(gaussian):
    w, q, _ = gaussian
    uniform = Codebook("int4", np.arange(-7, 9) / np.float32(8))
    error = dequantize(quantize(w, 64, uniform)).astype(np.float64) - w
    assert np.mean(error**2) > 1.1 * 0.008460
    assert not np.array_equal(quantize(w, 64, uniform).packed, q.packed)
