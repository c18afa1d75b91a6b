r"""Gradients against finite differences, optimizers against closed forms."""

import numpy as np
import pytest

from lora_edu import LoraConfig, LoraLinear
from lora_edu.training import SGD, Adam, layer_gradients, lora_gradients

SHAPES = [(7, 5, 3), (4, 9, 1), (6, 6, 6)]  # out, in, rank


def problem(out, width, rank, seed=0, leading=(4,)):
    rng = np.random.default_rng(seed)
    weight, a, b = (
        rng.standard_normal((out, width)),
        rng.standard_normal((rank, width)),
        rng.standard_normal((out, rank)),
    )
    x, target = rng.standard_normal((*leading, width)), rng.standard_normal((*leading, out))
    return x, target, weight, a, b, 1.7


def forward(x, weight, a, b, scaling):
    return x @ weight.T + scaling * (x @ a.T) @ b.T


def loss(x, target, weight, a, b, scaling):
    """Neither quadratic nor symmetric, so that no error cancels."""
    return float(np.sum(np.tanh(forward(x, weight, a, b, scaling)) * target))


def upstream(x, target, weight, a, b, scaling):
    return target / np.cosh(forward(x, weight, a, b, scaling)) ** 2


def differences(function, array, step=1e-6):
    """Central differences of `function` over every entry of `array`, which is moved in place and put back."""
    found = np.empty_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + step
        above = function()
        array[index] = kept - step
        found[index] = (above - function()) / (2 * step)
        array[index] = kept
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("leading", [(4,), (2, 3), ()])
def test_gradients_equal_finite_differences(shape, leading):
    x, _, weight, a, b, scaling = case = problem(*shape, leading=leading)
    found = lora_gradients(x, upstream(*case), weight, a, b, scaling)
    for gradient, array in zip(found, (a, b, x), strict=True):
        np.testing.assert_allclose(gradient, differences(lambda: loss(*case), array), rtol=1e-6, atol=1e-7)


def test_finite_differences_convict_a_missing_scaling_and_a_missing_base():
    x, _, weight, a, b, scaling = case = problem(7, 5, 3)
    right = lora_gradients(x, upstream(*case), weight, a, b, scaling)
    unscaled = lora_gradients(x, upstream(*case), weight, a, b, 1.0)
    no_base = lora_gradients(x, upstream(*case), 0 * weight, a, b, scaling)
    for wrong, name in ((unscaled, "lora_a"), (unscaled, "lora_b"), (no_base, "x")):
        assert np.abs(getattr(wrong, name) - getattr(right, name)).max() > 0.1


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
def test_a_layer_gives_the_gradients_of_its_arrays(fan_in_fan_out):
    x, target, weight, _, b, _ = problem(7, 5, 3)
    config = LoraConfig(rank=3, alpha=6, use_rslora=True, fan_in_fan_out=fan_in_fan_out)
    layer = LoraLinear(np.ascontiguousarray(weight.T) if fan_in_fan_out else weight, config)
    layer.lora_b = b
    found = layer_gradients(layer, x, target)
    wanted = lora_gradients(x, target, weight, layer.lora_a, layer.lora_b, layer.scaling)
    assert all(np.array_equal(one, other) for one, other in zip(found, wanted, strict=True))
    moved = [layer.lora_a.copy(), layer.lora_b.copy()]

    def linear_loss():
        layer.lora_a, layer.lora_b = moved
        return float(np.sum(layer(x) * target))

    for gradient, array in zip(found[:2], moved, strict=True):
        np.testing.assert_allclose(gradient, differences(linear_loss, array), rtol=1e-6, atol=1e-7)


def test_where_the_gradient_is_exactly_zero():
    x, target, weight, a, b, scaling = problem(7, 5, 3)
    at_start = lora_gradients(x, target, weight, a, 0 * b, scaling)
    assert at_start.lora_a.tobytes() == np.zeros_like(a).tobytes()  # every bit
    assert np.count_nonzero(at_start.lora_b) == b.size
    mirrored = lora_gradients(x, target, weight, 0 * a, b, scaling)
    assert np.count_nonzero(mirrored.lora_b) == 0 and np.count_nonzero(mirrored.lora_a) == a.size
    stuck = lora_gradients(x, target, weight, 0 * a, 0 * b, scaling)
    assert not np.any(stuck.lora_a) and not np.any(stuck.lora_b)


def test_what_has_no_gradient_of_its_own_is_refused():
    x, target, weight, *_ = problem(7, 5, 3)
    layer = LoraLinear(weight, LoraConfig(rank=2, dropout=0.5))
    with pytest.raises(ValueError, match=r"dropout must not act here, got 0.5; call eval"):
        layer_gradients(layer.train(), x, target)
    layer.eval().merge()
    with pytest.raises(ValueError, match=r"call unmerge\(\)"):
        layer_gradients(layer, x, target)
    layer.unmerge()
    with pytest.raises(ValueError, match="share their leading shape"):
        layer_gradients(layer, x, target[:-1])
    with layer.disabled(), pytest.raises(ValueError, match=r"enable\(\)"):
        layer_gradients(layer, x, target)


def test_sgd_follows_the_closed_form_of_a_parabola():
    """L = c p² / 2: after n steps p = p₀ (1 - lr c)ⁿ."""
    c, lr, p = np.array([0.5, 3.0]), 0.1, [np.array([2.0, -1.0])]
    optimizer = SGD(lr)
    for _ in range(20):
        p = optimizer.step(p, [c * p[0]])
    np.testing.assert_allclose(p[0], np.array([2.0, -1.0]) * (1 - lr * c) ** 20, rtol=1e-13)


def test_the_first_step_of_adam_is_the_sign_of_the_gradient():
    gradients = [np.array([[3.0, -1e-3, 0.0], [1e5, -1.0, 1e-7]]), np.array([-2.0])]
    start = [np.ones((2, 3)), np.zeros(1)]
    moved = Adam(lr=0.01).step(start, gradients)
    for before, after, g in zip(start, moved, gradients, strict=True):
        np.testing.assert_allclose(after - before, -0.01 * g / (np.abs(g) + 1e-8), rtol=1e-10, atol=1e-15)
        large = np.abs(g) > 1e-4
        np.testing.assert_allclose((after - before)[large], -0.01 * np.sign(g)[large], rtol=1e-4)
    assert moved[0][0, 2] == 1  # no gradient, no step
    assert (start[0] == 1).all() and not start[1].any()  # the old arrays are left alone


def test_adam_under_a_constant_gradient_walks_lr_a_step():
    """m̂ = g and v̂ = g² at every t, so p = p₀ - n · lr · sign(g)."""
    p, optimizer = [np.zeros(2)], Adam(lr=0.01, eps=0.0)
    for _ in range(50):
        p = optimizer.step(p, [np.array([4.0, -0.2])])
    np.testing.assert_allclose(p[0], [-0.5, 0.5], rtol=1e-10)


def test_adam_equals_the_published_algorithm_written_out():
    rng = np.random.default_rng(0)
    gradients, p, m, v = rng.standard_normal(12), 0.3, 0.0, 0.0
    ours, optimizer = [np.array([0.3])], Adam(lr=0.02, betas=(0.8, 0.95), eps=1e-3)
    for t, g in enumerate(gradients, start=1):
        m = 0.8 * m + 0.2 * g
        v = 0.95 * v + 0.05 * g**2
        p -= 0.02 * (m / (1 - 0.8**t)) / ((v / (1 - 0.95**t)) ** 0.5 + 1e-3)
        ours = optimizer.step(ours, [np.array([g])])
    assert abs(float(ours[0][0]) - p) < 1e-14
