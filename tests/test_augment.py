"""Augmentation: what each change does, and that it depends on nothing but the crop's own generator."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training extra not installed")
pytest.importorskip("kornia", reason="training extra not installed")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from tilelab.spec import Normalization  # noqa: E402
from tilelab.training.augment import (  # noqa: E402
    Symmetry,
    blur,
    change_intensity,
    draw_scale,
    resize,
    resize_labels,
    sharpen,
)
from tilelab.training.crops import Batches  # noqa: E402
from tilelab.training.data import CropSampler  # noqa: E402
from tilelab.training.pairs import make_pair  # noqa: E402
from tilelab.training.sections import IGNORE, Augmentation, Sampling  # noqa: E402

EVERYTHING = Augmentation(
    scale=(0.5, 2.0),
    contrast=(0.6, 1.7),
    brightness=0.25,
    gamma=(0.8, 1.25),
    blur=1.5,
    sharpen=1.0,
    noise=0.05,
    chance=0.7,
)


def noise(*shape: int, seed: int = 0) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32))


def make_sampler(crop: int = 48, size: int = 120, batch: int = 4) -> CropSampler:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (size, size), dtype=np.uint8)
    mask = (image > 200).astype(np.uint8)
    mask[:20, :30] = IGNORE
    normalization = Normalization(mean=(100.0,), std=(50.0,))
    return CropSampler([make_pair("p", image, mask)], 1, 2, Sampling(crop, batch), EVERYTHING, normalization, seed=5)


def test_symmetries_are_eight() -> None:
    plane = torch.arange(9).reshape(3, 3)
    seen = {
        tuple(Symmetry(turns, mirror).apply(plane).flatten().tolist()) for turns in range(4) for mirror in (False, True)
    }
    assert len(seen) == 8


@given(st.integers(0, 3), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=30)
def test_image_and_mask_are_turned_alike(turns: int, mirror: bool, seed: int) -> None:
    mask = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8))
    turned = Symmetry(turns, mirror).apply(mask)
    assert turned.dtype == torch.uint8
    assert torch.equal(Symmetry(turns, mirror).apply(mask[None].float())[0], turned.float())


def test_blur_agrees_with_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    crop = noise(1, 40, 40)
    expected = ndimage.gaussian_filter(crop[0].numpy(), 1.5, mode="mirror", truncate=10 / 3)
    np.testing.assert_allclose(blur(crop, 1.5)[0], expected, atol=2e-4)


def test_sharpening_adds_what_a_blur_takes_away() -> None:
    crop = noise(2, 30, 30)
    torch.testing.assert_close(sharpen(crop, 0.6), crop + 0.6 * (crop - blur(crop, 1.0)), atol=1e-6, rtol=0)
    assert torch.equal(sharpen(crop, 0.0), crop)


def test_switched_off_intensity_changes_leave_the_crop() -> None:
    crop = noise(1, 8, 8)
    torch.testing.assert_close(
        change_intensity(crop, Augmentation(), np.random.default_rng(0)), crop, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_contrast_is_about_the_mean_and_nothing_is_cut_off(channels: int) -> None:
    """Beyond full scale too, where kornia's own contrast and gamma would flatten a floating point image."""
    crop = 3 * noise(channels, 20, 20)
    changed = change_intensity(crop, Augmentation(contrast=(1.7, 1.7)), np.random.default_rng(0))
    torch.testing.assert_close(changed, (crop - crop.mean()) * 1.7 + crop.mean(), atol=1e-5, rtol=0)
    darker = change_intensity(crop, Augmentation(gamma=(2.0, 2.0)), np.random.default_rng(0))
    torch.testing.assert_close(darker, crop**2, atol=1e-4, rtol=1e-5)


def test_brightness_moves_both_ways_within_its_limit() -> None:
    crop = noise(1, 8, 8)
    moved = [
        float((change_intensity(crop, Augmentation(brightness=0.2), np.random.default_rng(i)) - crop).mean())
        for i in range(60)
    ]
    assert -0.2 <= min(moved) < -0.15
    assert 0.15 < max(moved) <= 0.2


def test_switching_one_effect_off_leaves_the_others_as_they_were() -> None:
    crop = noise(1, 24, 24)
    some = Augmentation(brightness=0.2, noise=0.1, chance=1.0)
    more = Augmentation(brightness=0.2, noise=0.1, sharpen=1e-9, blur=1e-9, chance=1.0)
    one, two = (change_intensity(crop, which, np.random.default_rng(3)) for which in (some, more))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


def test_noise_has_its_strength() -> None:
    crop = torch.full((1, 128, 128), 0.5)
    noisy = Augmentation(noise=0.1, chance=1.0)
    strengths = [float(change_intensity(crop, noisy, np.random.default_rng(seed)).std()) for seed in range(40)]
    assert 0 < min(strengths) < 0.02
    assert 0.08 < max(strengths) <= 0.102


def test_scales_lie_in_their_range_as_often_above_as_below_one() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([draw_scale(Augmentation(scale=(0.5, 2.0), chance=0.5), rng) for _ in range(2000)])
    assert drawn.min() >= 0.5
    assert drawn.max() <= 2.0
    assert (drawn == 1).mean() == pytest.approx(0.5, abs=0.05)
    assert (drawn > 1).sum() == pytest.approx((drawn < 1).sum(), rel=0.15)


@pytest.mark.parametrize("extent", [24, 33, 48, 71, 96])
def test_resizing_makes_up_no_class(extent: int) -> None:
    mask = torch.from_numpy(np.random.default_rng(extent).choice(np.array([0, 2, IGNORE], np.uint8), (extent, extent)))
    resized = resize_labels(mask, 48)
    assert resized.shape == (48, 48)
    assert set(resized.flatten().tolist()) == {0, 2, IGNORE}
    centres = ((np.arange(48) + 0.5) * extent / 48).astype(int)
    np.testing.assert_array_equal(resized, mask[centres][:, centres])


def test_shrinking_averages_so_that_fine_stripes_vanish() -> None:
    stripes = torch.sin(2 * torch.pi * torch.arange(384) / 2.1).expand(1, 384, 384).contiguous()
    assert float(resize(stripes, 256)[..., 20:-20].std()) * 2**0.5 < 0.15
    flat = torch.full((1, 384, 384), 0.25)
    torch.testing.assert_close(resize(flat, 256), torch.full((1, 256, 256), 0.25))


def test_enlarging_is_bilinear_about_pixel_centres() -> None:
    ramp = torch.arange(8.0).expand(1, 8, 8).contiguous()
    expected = (torch.arange(16) + 0.5) / 2 - 0.5
    torch.testing.assert_close(resize(ramp, 16)[0, 0, 1:-1], expected[1:-1])


def test_ignored_pixels_stay_ignored() -> None:
    """The image is bright exactly where the mask says to ignore, before and after all geometry."""
    mask = np.zeros((120, 120), np.uint8)
    mask[30:80, 40:100] = IGNORE
    geometry = Augmentation(scale=(0.5, 2.0), chance=1.0)
    normalization = Normalization(mean=(0.0,), std=(1.0,))
    sampler = CropSampler([make_pair("p", mask, mask)], 1, 2, Sampling(64, 1, 0.0), geometry, normalization, 0)
    for step in range(20):
        image, labels = sampler.crop(step, 0)
        assert set(labels.flatten().tolist()) <= {0, IGNORE}
        assert float(((image[0] > 127) == (labels == IGNORE)).float().mean()) > 0.97


def test_crops_do_not_depend_on_threads() -> None:
    """Neither on how many torch computes with nor on which of several draws a crop, nor in which order."""
    sampler = make_sampler()
    expected = [[sampler.crop(step, index) for index in range(4)] for step in range(3)]

    def differ(found: Any, wanted: Any) -> bool:
        return any(not torch.equal(a, b) for a, b in zip(found, wanted, strict=True))

    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert not any(differ(make_sampler().crop(s, i), expected[s][i]) for s in range(3) for i in range(4))
    finally:
        torch.set_num_threads(before)
    with ThreadPoolExecutor(3) as pool:
        jobs = {(s, i): pool.submit(sampler.crop, s, i) for s in (2, 0, 1) for i in (3, 1, 0, 2)}
        assert not any(differ(job.result(), expected[s][i]) for (s, i), job in jobs.items())
    for threads in (1, 3):
        with Batches(make_sampler().crop, range(4), 0, threads) as batches:
            for step in range(3):
                images, masks = batches.take()
                assert torch.equal(images, torch.stack([image for image, _ in expected[step]]))
                assert torch.equal(masks, torch.stack([mask for _, mask in expected[step]]).long())
    assert torch.get_num_threads() == before


def test_drawing_leaves_the_global_generators_alone() -> None:
    state, other = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    make_sampler().batch(0)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], other)  # noqa: NPY002


def test_what_goes_wrong_in_a_thread_is_said() -> None:
    def fail(step: int, index: int) -> Any:
        raise ValueError(f"crop {index}")

    with Batches(fail, range(2), 0) as batches, pytest.raises(ValueError, match="crop 0"):
        batches.take()
