"""Mixed batches against NumPy in float64, and the loss of each image that they were mixed from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_binomial
from scipy import stats

from isjax.tasks.augmentations import mixup, per_source, ricap

pytestmark = pytest.mark.slow  # statistics of many images

BATCH, HEIGHT, WIDTH = 16, 7, 5


def pictures(dtype=np.uint8, channels=3):
    shape = (BATCH, HEIGHT, WIDTH, channels)
    return np.random.default_rng(0).integers(0, 256, shape).astype(dtype)


def labelled(batch=BATCH, height=HEIGHT, width=WIDTH):
    """Images whose every pixel says of which image it is, of which row and of which column."""
    return np.stack(np.indices((batch, height, width)), axis=-1).astype(np.uint8)


def over_keys(mix, images, num, seed=0, **settings):
    """What the mixing returns for `num` keys, as NumPy arrays [num, ...]."""
    keys = jax.random.split(jax.random.key(seed), num)
    mixed = jax.jit(jax.vmap(lambda key: mix(key, images, **settings)))(keys)
    return jax.tree.map(np.asarray, mixed)


def assert_shares(mixed):
    """Each row is whole, each image is used whole, and each column holds every image once."""
    batch, parts = mixed.source.shape
    assert mixed.source.dtype == jnp.int32 and mixed.share.dtype == jnp.float32
    np.testing.assert_array_equal(mixed.source[:, 0], np.arange(batch))
    np.testing.assert_array_equal(np.sort(mixed.source, axis=0).T, [np.arange(batch)] * parts)
    np.testing.assert_allclose(np.sum(mixed.share, axis=1), 1, rtol=1e-6)
    used = np.zeros(batch)
    np.add.at(used, np.asarray(mixed.source), np.asarray(mixed.share, np.float64))
    np.testing.assert_allclose(used, 1, rtol=1e-6)


@pytest.mark.parametrize(("dtype", "channels"), [("uint8", 3), ("float32", 1), ("bfloat16", 3)])
def test_mixup_averages_two_images(dtype, channels):
    images = jnp.asarray(pictures(channels=channels), dtype)
    mixed = jax.jit(mixup)(jax.random.key(0), images)
    assert mixed.x.shape == images.shape and mixed.x.dtype == jnp.float32
    assert_shares(mixed)
    exact = np.asarray(images, np.float64)[np.asarray(mixed.source)]
    exact = np.einsum("bmhwc,bm->bhwc", exact, np.asarray(mixed.share, np.float64))
    np.testing.assert_allclose(mixed.x, exact, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.2, 2.0])
def test_mixup_draws_its_share_from_a_beta_distribution_and_every_order_as_often(alpha):
    num = 3000
    images = np.eye(3, dtype=np.uint8).reshape(3, 1, 3, 1)  # a mixed image is what it is made of
    mixed = over_keys(mixup, images, num, alpha=alpha)
    shares = mixed.share
    assert np.all(shares == shares[:, :1])  # one for the batch
    made = np.zeros((num, 3, 3), np.float32)
    trial, row = np.ogrid[:num, :3]
    np.add.at(made, (trial[..., None], row[..., None], mixed.source), shares)
    np.testing.assert_allclose(mixed.x[..., 0, :, 0], made, atol=1e-6)

    own = shares[:, 0, 0].astype(np.float64)
    assert stats.kstest(own, stats.beta(alpha, alpha).cdf).pvalue > 1e-6
    _, counts = np.unique(mixed.source[:, :, 1], axis=0, return_counts=True)
    assert len(counts) == 6
    assert_binomial(counts, num, 1 / 6)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_ricap_puts_four_patches_together(dtype):
    images = labelled().astype(dtype)
    mix = jax.jit(ricap)
    for seed in range(20):
        mixed = mix(jax.random.key(seed), images)
        assert mixed.x.shape == images.shape and mixed.x.dtype == dtype
        assert_shares(mixed)
        # All rows have the same cut, told by the shares: areas of the top and of the left.
        areas = np.asarray(mixed.share[0], np.float64) * HEIGHT * WIDTH
        top, left = (areas[0] + areas[1]) / WIDTH, (areas[0] + areas[2]) / HEIGHT
        np.testing.assert_allclose([top, left], np.round([top, left]), atol=1e-5)
        top, left = round(top), round(left)
        np.testing.assert_allclose(mixed.share, [mixed.share[0]] * BATCH)
        for x, source in zip(np.asarray(mixed.x), np.asarray(mixed.source), strict=True):
            patches = [x[:top, :left], x[:top, left:], x[top:, :left], x[top:, left:]]
            for patch, image in zip(patches, source, strict=True):
                if patch.size:
                    row, column = patch[0, 0, 1:].astype(int)
                    height, width = patch.shape[:2]
                    cut = images[image, row : row + height, column : column + width]
                    np.testing.assert_array_equal(patch, cut)


def test_ricap_cuts_anywhere_as_likely():
    num, batch, height, width = 2000, 4, 3, 2
    images = labelled(batch, height, width)
    mixed = over_keys(ricap, images, num, beta=1.0)
    areas = np.round(mixed.share[:, 0] * height * width).astype(int)
    top, left = (areas[:, 0] + areas[:, 1]) // width, (areas[:, 0] + areas[:, 2]) // height
    # Rounded uniforms: the ends have half of the width of the others.
    assert_binomial(np.bincount(top, minlength=4), num, np.array([1, 2, 2, 1]) / 6)
    assert_binomial(np.bincount(left, minlength=3), num, np.array([1, 2, 1]) / 4)
    assert_binomial(np.sum((top == 1) & (left == 1)), num, 1 / 6)
    # The first pixel of a patch says where it was cut out, of the three rows and two columns.
    for patch, (below, right) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        heights = height - top if below else top
        widths = width - left if right else left
        for tall in range(1, height + 1):
            for wide in range(1, width + 1):
                chosen = np.flatnonzero((heights == tall) & (widths == wide))
                y = (height - tall) * below
                x = (width - wide) * right
                first = mixed.x[chosen, :, y, x]
                np.testing.assert_array_equal(first[..., 0], mixed.source[chosen, :, patch])
                rows, columns = height - tall + 1, width - wide + 1
                place = np.asarray(first[..., 1], int) * columns + first[..., 2]
                counts = np.bincount(place.ravel(), minlength=rows * columns)
                assert_binomial(counts, place.size, 1 / (rows * columns))
                same = np.sum(place[:, 1:] == place[:, :-1])  # each image has its own place
                assert_binomial(same, place.size * 3 // 4, 1 / (rows * columns))


@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_ricap_draws_its_cut_from_a_beta_distribution_and_every_order_as_often(beta):
    num = 3000
    mixed = over_keys(ricap, labelled(3, 8, 8), num, beta=beta)
    areas = mixed.share[:, 0].astype(np.float64) * 8
    top, left = areas[:, 0] + areas[:, 1], areas[:, 0] + areas[:, 2]
    edges = np.clip(np.arange(10) - 0.5, 0, 8) / 8
    probs = np.diff(stats.beta(beta, beta).cdf(edges))
    for cut in (top, left):
        assert_binomial(np.bincount(np.round(cut).astype(int), minlength=9), num, probs)
    assert abs(stats.spearmanr(top, left).statistic) < 5 / np.sqrt(num)
    for part in (1, 2, 3):
        _, counts = np.unique(mixed.source[:, :, part], axis=0, return_counts=True)
        assert_binomial(counts, num, 1 / 6)
    same = [np.all(mixed.source[:, :, i] == mixed.source[:, :, i % 3 + 1], axis=1) for i in (1, 2)]
    assert_binomial(np.sum(same, axis=1), num, 1 / 6)


@pytest.mark.parametrize("mix", [mixup, ricap])
def test_the_key_alone_decides(mix):
    first, again, other = (jax.jit(mix)(jax.random.key(seed), pictures()) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.any(first.x != other.x)


@pytest.mark.parametrize("mix", [mixup, ricap])
def test_a_batch_of_one_image_is_mixed_with_itself(mix):
    mixed = mix(jax.random.key(0), pictures()[:1])  # outside of a step, of a NumPy array
    assert_shares(mixed)


@pytest.mark.parametrize("mix", [mixup, ricap])
def test_what_is_not_an_image_is_refused(mix):
    with pytest.raises(ValueError, match=rf"{mix.__name__}: the shape is \(2, 40, 1\).*; reshape"):
        mix(jax.random.key(0), jnp.zeros((2, 40, 1)))


@pytest.mark.parametrize(("mix", "name"), [(mixup, "alpha"), (ricap, "beta")])
@pytest.mark.parametrize("value", [0, -0.5, float("nan")])
def test_a_distribution_that_does_not_exist_is_refused(mix, name, value):
    with pytest.raises(ValueError, match=f"{mix.__name__}: {name} is {value}; choose it above 0"):
        mix(jax.random.key(0), jnp.zeros((2, 4, 4, 1)), **{name: value})


def losses_of(shape, seed=0):
    return np.random.default_rng(seed).gamma(1.0, size=shape).astype(np.float32)


@pytest.mark.parametrize("mix", [mixup, ricap])
def test_the_loss_of_a_source_is_that_of_its_parts(mix):
    mixed = jax.jit(mix)(jax.random.key(3), pictures())
    losses = losses_of(mixed.share.shape)
    found = jax.jit(per_source)(losses, mixed.source, mixed.share)
    assert found.shape == (BATCH,) and found.dtype == jnp.float32
    source, share = np.asarray(mixed.source), np.asarray(mixed.share, np.float64)
    expected = np.zeros(BATCH)
    np.add.at(expected, source, share * losses)
    np.testing.assert_allclose(found, expected, rtol=1e-5)

    # The sum is that of the mixed losses; weighted, each part is weighted by its own image.
    usual = np.sum(share * losses, axis=1)
    np.testing.assert_allclose(np.sum(found), np.sum(usual), rtol=1e-5)
    weights = losses_of(BATCH, seed=1)
    by_part = np.sum(weights[source] * share * losses)
    np.testing.assert_allclose(np.sum(weights * found), by_part, rtol=1e-5)


@pytest.mark.parametrize("mix", [mixup, ricap])
def test_the_loss_of_a_source_concerns_that_source_alone(mix):
    mixed = jax.jit(mix)(jax.random.key(4), pictures())
    losses = losses_of(mixed.share.shape)
    slopes = jax.jacobian(per_source)(losses, mixed.source, mixed.share)
    own = np.asarray(mixed.source)[None, :, :] == np.arange(BATCH)[:, None, None]
    np.testing.assert_allclose(slopes, np.where(own, mixed.share[None, :, :], 0.0), rtol=1e-6)
    # An image that loses the same wherever a part of it goes, loses that.
    alone = losses_of(BATCH)
    found = per_source(alone[mixed.source], mixed.source, mixed.share)
    np.testing.assert_allclose(found, alone, rtol=1e-5)


def test_a_source_may_come_several_times_or_never():
    source = np.array([[0, 0], [0, 2], [0, 0]], np.int32)
    share = np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]], np.float32)
    losses = np.array([[1.0, 2.0], [4.0, 8.0], [16.0, 32.0]], np.float32)
    np.testing.assert_array_equal(per_source(losses, source, share), [18.5, 0.0, 6.0])


@pytest.mark.parametrize("shapes", [[(4,), (4, 2), (4, 2)], [(4, 2), (4, 4), (4, 2)], [(4,)] * 3])
def test_losses_of_another_shape_are_refused(shapes):
    losses, source, share = (jnp.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=r"shapes are .*; give one loss for each source"):
        per_source(losses, source.astype(jnp.int32), share)
