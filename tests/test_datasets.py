r"""The data that ship with the package: what they hold, and the facts that the chapters rest on."""

from importlib.resources import files

import numpy as np
import pytest

from lora_edu import dequantize, quantize, relative_error
from lora_edu.datasets import ATTENTION_OUTPUT, FFN_DOWN, QUERY, digits, minilm_weights


def test_digits_are_the_published_test_set():
    images, labels = digits()
    assert (images.shape, images.dtype) == ((1797, 8, 8), np.uint8)
    assert (labels.shape, labels.dtype) == ((1797,), np.uint8)
    assert (images.min(), images.max()) == (0, 16)
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert images[0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]  # the zero that every tutorial opens with
    assert labels[:10].tolist() == list(range(10))


def test_digits_can_be_told_apart_by_their_nearest_mean():
    images, labels = digits()
    x = images.reshape(len(images), 64).astype(np.float64)
    means = np.stack([x[:1000][labels[:1000] == digit].mean(0) for digit in range(10)])
    nearest = np.linalg.norm(x[1000:, None] - means, axis=2).argmin(1)
    assert (nearest == labels[1000:]).mean() > 0.85  # images and labels belong together


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "std", "kurtosis", "largest"),
    [
        (QUERY, (384, 384), np.float32, 0.0848, 3.23, 5.35),
        (ATTENTION_OUTPUT, (384, 384), np.float32, 0.0434, 8.24, 23.9),
        (FFN_DOWN, (384, 1536), np.float16, 0.0453, 1585, 174.7),
    ],
)
def test_weights_have_the_shapes_and_tails_that_the_chapters_tell_of(name, shape, dtype, std, kurtosis, largest):
    w = minilm_weights()[name]
    assert (w.shape, w.dtype) == (shape, dtype)
    w = w.astype(np.float64)
    assert np.isfinite(w).all()
    assert w.std() == pytest.approx(std, rel=0.002)
    assert np.mean((w - w.mean()) ** 4) / w.var() ** 2 == pytest.approx(kurtosis, rel=0.002)
    assert np.abs(w).max() / w.std() == pytest.approx(largest, rel=0.002)


def test_the_largest_weight_belongs_to_output_row_99():
    w = minilm_weights()[FFN_DOWN].astype(np.float64)
    sigmas = np.abs(w) / w.std()
    assert np.unravel_index(sigmas.argmax(), w.shape) == (99, 856)
    assert (np.flatnonzero((sigmas > 30).any(1)) == [99]).all()


def test_one_scale_for_the_whole_weight_loses_what_blocks_keep():
    w = minilm_weights()[FFN_DOWN].astype(np.float32)
    assert relative_error(w, dequantize(quantize(w, w.size))) == pytest.approx(0.97, abs=0.005)
    assert relative_error(w, dequantize(quantize(w, 64))) == pytest.approx(0.09, abs=0.005)


def test_weights_come_by_their_original_names_and_are_read_once():
    assert sorted(minilm_weights()) == sorted([QUERY, ATTENTION_OUTPUT, FFN_DOWN])
    assert minilm_weights()[QUERY] is minilm_weights()[QUERY]
    assert digits()[0] is digits()[0]


def test_data_are_read_only():
    for array in (*digits(), *minilm_weights().values()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_origin_and_licence_stand_beside_the_files():
    folder = files("lora_edu.datasets")
    text = (folder / "README.md").read_text(encoding="utf-8")
    for path in folder.iterdir():
        if path.name.endswith(".npz"):
            assert f"`{path.name}`" in text
    assert "Apache-2.0" in text
    assert "CC BY 4.0" in text
