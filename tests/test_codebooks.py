r"""NF4: the published constants, their bounds, and the one derivation that gives them bit for bit."""

from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from lora_edu import NF4, Codebook, derive_nf4
from lora_edu.metrics import ulp_distance

TABLES = np.load(Path(__file__).parent / "golden" / "tables.npz")
QUANTILE = NormalDist().inv_cdf

# The 15 decision constants of the CUDA kernel of bitsandbytes (dQuantizeNF4), in increasing order.
PUBLISHED_BOUNDS = [
    -0.8480964004993439,
    -0.6106329262256622,
    -0.4599952697753906,
    -0.33967943489551544,
    -0.23460740596055984,
    -0.13791173323988914,
    -0.045525018125772475,
    0.03979014977812767,
    0.1202552504837513,
    0.2035212516784668,
    0.2920137718319893,
    0.3893125355243683,
    0.5016634166240692,
    0.6427869200706482,
    0.8614784181118011,
]


def test_levels_are_the_published_constants():
    assert NF4.levels.dtype == np.float32
    assert NF4.levels.tobytes() == TABLES["nf4"].tobytes()


def test_bounds_are_the_published_constants():
    assert NF4.bounds.dtype == np.float32
    assert NF4.bounds.tobytes() == TABLES["nf4_bounds"].tobytes()
    assert NF4.bounds.tobytes() == np.array(PUBLISHED_BOUNDS, np.float32).tobytes()


def test_the_derivation_gives_every_published_bit():
    derived = derive_nf4()
    assert derived.dtype == np.float32
    assert derived.tobytes() == TABLES["nf4"].tobytes()


def float64_linspace(offset=0.9677083):
    positive = [QUANTILE(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    negative = [-QUANTILE(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    levels = np.sort([*negative, 0.0, *positive])
    return (levels / levels.max()).astype(np.float32)


def rounded_linspace(offset=0.9677083):
    positive = [QUANTILE(float(p)) for p in np.linspace(offset, 0.5, 9, dtype=np.float32)[:-1]]
    negative = [-QUANTILE(float(p)) for p in np.linspace(offset, 0.5, 8, dtype=np.float32)[:-1]]
    levels = np.sort(np.array([*negative, 0.0, *positive], np.float32))
    return levels / levels.max()


def even_quantiles():
    levels = np.array([QUANTILE((i + 0.5) / 16) for i in range(16)])
    return (levels / levels.max()).astype(np.float32)


@pytest.mark.parametrize(
    ("derivation", "low", "high"),
    [
        (float64_linspace, 1e-8, 2e-7),
        (rounded_linspace, 1e-8, 3e-7),
        (lambda: derive_nf4(929 / 960), 1e-7, 5e-7),
        (even_quantiles, 0.041, 0.043),
    ],
    ids=["float64 linspace", "float32 of a float64 linspace", "offset 929/960 exactly", "even quantiles"],
)
def test_a_tempting_derivation_is_told_from_the_published_table(derivation, low, high):
    levels = derivation()
    assert levels.tobytes() != TABLES["nf4"].tobytes()
    assert low < np.abs(levels - TABLES["nf4"]).max() < high


def test_the_level_that_the_reference_implementation_types_is_one_ulp_off():
    assert ulp_distance(np.float32(-0.09105004), NF4.levels[6]) == 1


def test_there_are_seven_negative_levels_a_zero_and_eight_positive_ones():
    assert ((NF4.levels < 0).sum(), (NF4.levels == 0).sum(), (NF4.levels > 0).sum()) == (7, 1, 8)
    assert NF4.zero_code == 7
    assert (NF4.levels[0], NF4.levels[15]) == (-1, 1)


def test_even_quantiles_have_no_exact_zero_and_are_refused():
    with pytest.raises(ValueError, match="levels must contain 0 exactly"):
        Codebook("even", even_quantiles())


@pytest.mark.parametrize("offset", [0.51, 0.9, 0.9367, 0.9962, 0.999])
def test_every_offset_gives_a_codebook(offset):
    codebook = Codebook("member", derive_nf4(offset))
    assert (codebook.levels[0], codebook.levels[7], codebook.levels[15]) == (-1, 0, 1)


def test_bounds_lie_between_their_levels_and_tables_are_read_only():
    assert (NF4.levels[:-1] < NF4.bounds).all()
    assert (NF4.bounds < NF4.levels[1:]).all()
    for array in (NF4.levels, NF4.bounds):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_a_codebook_keeps_its_own_copy_of_the_levels():
    levels = np.linspace(-1, 1, 17, dtype=np.float32)[1:]
    codebook = Codebook("uniform", levels)
    assert codebook.zero_code == 7
    levels[0] = 5
    assert codebook.levels[0] == -0.875
