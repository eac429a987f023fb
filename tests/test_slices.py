"""Folders of slices: one numbered series is a stack; what is missing is said, what could be several is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from image_files import pixels
from PIL import Image as Picture

from tilelab import infer
from tilelab.cli.main import main
from tilelab.errors import InputError
from tilelab.io.images.open import open_image
from tilelab.io.images.series import arrange_slices

SAME = "same"

# names, those of the stack in order (or the refusal), and what is said
FOLDERS: dict[str, tuple[list[str], list[str] | str, str]] = {
    "plain": (["s_001.tif", "s_002.tif", "s_003.tif"], ["s_001.tif", "s_002.tif", "s_003.tif"], ""),
    "numbers alone": (["10.tif", "9.tif", "8.tif"], ["8.tif", "9.tif", "10.tif"], ""),
    "mixed padding": (["s2.tif", "s10.tif", "s01.tif"], ["s01.tif", "s2.tif", "s10.tif"], "(3, 4, 5, 6, 7, 8, 9)"),
    "upper case": (["S2.TIF", "s1.tif"], ["s1.tif", "S2.TIF"], ""),
    "mixed kinds": (["s1.tif", "s2.png", "s3.tiff"], ["s1.tif", "s2.png", "s3.tiff"], ""),
    "tens": (["z0.tif", "z50.tif", "z100.tif"], ["z0.tif", "z50.tif", "z100.tif"], ""),
    "gap": (["s1.tif", "s2.tif", "s4.tif"], ["s1.tif", "s2.tif", "s4.tif"], "1 missing slice of F (3): left out"),
    "gaps": (
        ["s1.tif", "s3.tif", "s4.tif", "s7.tif"], ["s1.tif", "s3.tif", "s4.tif", "s7.tif"],
        "3 missing slices of F (2, 5, 6)"
    ),
    "gap of two": (["s1.tif", "s5.tif"], ["s1.tif", "s5.tif"], "(2, 3, 4)"),
    "gap of tens": (["z0.tif", "z50.tif", "z150.tif"], ["z0.tif", "z50.tif", "z150.tif"], "(100)"),
    "dates beside": (["s1_2024-05-01.tif", "s2_2024-05-03.tif"], ["s1_2024-05-01.tif", "s2_2024-05-03.tif"], ""),
    "dates behind": (["s1_900.tif", "s2_100.tif"], ["s1_900.tif", "s2_100.tif"], ""),
    "dates before": (["t100_s2.tif", "t900_s1.tif"], ["t100_s2.tif", "t900_s1.tif"], "the order of the slices"),
    "decimals": (["z0.0.tif", "z0.5.tif", "z1.0.tif"], ["z0.0.tif", "z0.5.tif", "z1.0.tif"], ""),
    "uneven": (["z0.0.tif", "z0.5.tif", "z1.2.tif"], ["z0.0.tif", "z0.5.tif", "z1.2.tif"], "in uneven steps"),
    "decimals or versions": (["z1.9.tif", "z1.10.tif"], ["z1.10.tif", "z1.9.tif"], "the order of the slices"),
    "negative": (["z_-1.tif", "z_0.tif", "z_1.tif"], ["z_-1.tif", "z_0.tif", "z_1.tif"], ""),
    "negative decimals": (["z=-0.5.tif", "z=0.0.tif", "z=0.5.tif"], ["z=-0.5.tif", "z=0.0.tif", "z=0.5.tif"], ""),
    "hyphens": (["s-1.tif", "s-2.tif", "s-3.tif"], ["s-1.tif", "s-2.tif", "s-3.tif"], ""),
    "hyphens behind a bar": (["s_-1.tif", "s_-2.tif"], ["s_-1.tif", "s_-2.tif"], ""),
    "not images": (["s1.tif", "s2.tif", "Thumbs.db", "a.txt", "._s1.tif", ".s3.tif"], ["s1.tif", "s2.tif"], ""),
    "masks": (
        ["s1.tif", "s2.tif", "s1_mask.tif", "s2_mask.tif"], ["s1.tif", "s2.tif"],
        "2, without s1_mask.tif, s2_mask.tif"
    ),
    "masks alone": (["mask1.tif", "mask2.tif"], ["mask1.tif", "mask2.tif"], ""),
    "a preview": (["s1.tif", "s2.tif", "overview.jpg"], ["s1.tif", "s2.tif"], "without overview.jpg"),
    "thumbnails": (["s1.tif", "s1_thumb.png", "s2.tif", "s2_thumb.png"], ["s1.tif", "s2.tif"], "masks or previews"),
    "one of two": (["s1.tif", "s1-labels.png"], ["s1.tif"], "without s1-labels.png"),
    "every one twice": (
        ["s1.tif", "s1.png", "s2.tif", "s2.png"], ["s1.tif", "s2.tif"],
        "the .tif files, because every slice is there twice"
    ),
    "twice and different": (
        ["d1.tif", "d1.png", "d2.tif", "d2.png"],
        "as .tif and .png, and their pixels differ: name one kind", ""
    ),
    "one twice": (["s1.tif", "s1.png", "s2.tif"], "two slices of the same number, s1.png and s1.tif", ""),
    "padded twice": (["s1.tif", "s01.tif", "s2.tif"], "two slices of the same number", ""),
    "two series": (
        ["a1.tif", "a2.tif", "b1.tif"],
        "images of 2 series, a#.tif (2), b#.tif (1): name the one that is the stack, as 'F/a*.tif'", ""
    ),
    "a stranger": (["s1.tif", "s2.tif", "map.tif"], "2 series", ""),
    "separate": (["cat.tif", "dog.tif"], "no numbered series (cat.tif, dog.tif): separate images are no stack", ""),
    "tiles": (["r0_c0.tif", "r0_c1.tif", "r1_c0.tif", "r1_c1.tif"], "tiles or channels are no slices", ""),
    "channels": (
        ["z1_c0.tif", "z1_c1.tif", "z2_c0.tif", "z2_c1.tif", "z3_c0.tif", "z3_c1.tif"],
        "as 'F/z*_c0.tif'", ""
    ),
    "nothing": (["a.txt"], "a folder without images", ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
def test_names(kind: str) -> None:
    names, expected, said = FOLDERS[kind]

    def arrange() -> tuple[list[str], str]:
        found, guesses = arrange_slices("F", names[::-1], lambda a, b: not a.startswith("d"))
        return found, "\n".join(map(str, guesses))

    if isinstance(expected, str):
        with pytest.raises(InputError) as caught:
            arrange()
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)
        return
    found, guesses = arrange()
    assert found == expected
    assert said in guesses
    assert bool(said) == bool(guesses)


@given(
    st.integers(0, 1200),
    st.integers(2, 30),
    st.integers(0, 5),
    st.sampled_from(["", "s", "a_1_b_", "slice-", "x."]),
    st.randoms(),
)
def test_consecutive_numbers_are_a_stack_in_their_order(
    first: int, count: int, width: int, text: str, random: Any
) -> None:
    names = [f"{text}{i:0{width}d}.tif" for i in range(first, first + count)]
    shuffled = random.sample(names, count)
    assert arrange_slices("F", shuffled, lambda a, b: False) == (names, ())


def write(folder: Path, name: str, plane: Any) -> None:
    folder.mkdir(exist_ok=True)
    if name.endswith(".png"):
        Picture.fromarray(plane).save(folder / name)
    else:
        tifffile.imwrite(folder / name, plane)


def test_a_missing_slice_is_said_and_refused_by_strict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = pixels((4, 40, 50))
    for plane, number in zip(stored, (1, 2, 4, 5), strict=True):
        write(tmp_path / "gap", f"s{number:03d}.tif", plane)
    with open_image(tmp_path / "gap") as image:
        np.testing.assert_array_equal(image[...], stored)
        assert "1 missing slice" in str(image.assumptions[0])
    run = ["infer", str(tmp_path / "gap"), "-m", "identity", "--tile", "32", "-o", str(tmp_path / "o.ome.zarr")]
    assert main([*run, "--strict"]) == 2
    assert main(run) == 0
    assert "1 missing slice" in capsys.readouterr().err


def test_every_slice_in_two_kinds(tmp_path: Path) -> None:
    stored = pixels((2, 40, 50))
    for kind in ("tif", "png"):
        for i in range(2):
            write(tmp_path / "twice", f"a{i}.{kind}", stored[i])
    with open_image(tmp_path / "twice") as image:
        assert image.shape == (2, 40, 50)
        assert "every slice is there twice, as .tif, .png" in str(image.assumptions[0])
    write(tmp_path / "twice", "a1.png", stored[0])
    with pytest.raises(InputError, match="their pixels differ"):
        open_image(tmp_path / "twice")
    with open_image(f"{tmp_path / 'twice'}/*.png") as image:
        np.testing.assert_array_equal(image[...], stored[[0, 0]])
        assert image.assumptions == ()


def test_one_of_several_series_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = pixels((3, 40, 50))
    for i in range(3):
        write(tmp_path / "stack", f"a_{i}.tif", stored[i])
        write(tmp_path / "stack", f"b_{i}.tif", stored[0])
    with pytest.raises(
        InputError, match=r"a_#\.tif \(3\), b_#\.tif \(3\): name the one that is the stack, as '.*a_\*\.tif'"
    ):
        open_image(tmp_path / "stack")
    monkeypatch.chdir(tmp_path)
    run = infer("stack/a_*.tif", "identity")
    assert (str(run.path), run.report["shape"]) == ("a.identity.ome.zarr", [3, 40, 50])
    with pytest.raises(InputError, match=r"names no file: .*stack holds 6 others"):
        open_image("stack/c_*.tif")


def test_slices_of_different_pixel_sizes_are_said(tmp_path: Path) -> None:
    for i, size in enumerate((2.5e6, 2.5e6, 5e6)):
        write(tmp_path / "stack", f"s{i}.tif", pixels((40, 50)))
        tifffile.imwrite(
            tmp_path / "stack" / f"s{i}.tif", pixels((40, 50)), resolution=(size, size), resolutionunit="CENTIMETER"
        )
    with open_image(tmp_path / "stack") as image:
        assert image.pixel_size_nm == (4, 4, 4)
        said = "\n".join(map(str, image.assumptions))
        assert "its slices state 2 different ones" in said
        assert "how thick the slices" in said


def test_an_image_beside_its_mask_is_a_plane(tmp_path: Path) -> None:
    for name in ("s1.tif", "s1_mask.tif"):
        write(tmp_path / "pair", name, pixels((40, 50), seed=len(name)))
    with open_image(tmp_path / "pair") as image:
        np.testing.assert_array_equal(image[...], pixels((40, 50), seed=6))
        assert "without s1_mask.tif" in str(image.assumptions[0])


def test_a_numbered_folder_is_a_stack_where_neighbours_look_alike(tmp_path: Path) -> None:
    from tilelab.io.images.alike import ALIKE, likeness
    from tilelab.io.images.folders import assume_stack, evident_stack, gather_images
    from tilelab.sample import draw_superalloy

    names = [f"s{i:02}.png" for i in range(6)]
    (tmp_path / "stack").mkdir()
    (tmp_path / "apart").mkdir()
    wide = draw_superalloy((400, 460), 3)[0]
    rng = np.random.default_rng(0)
    for i, name in enumerate(names):  # slices that drift, with a noise of their own; micrographs of one specimen
        slice_ = np.clip(wide[:, 9 * i : 9 * i + 400] + rng.normal(0, 20, (400, 400)), 0, 255)
        Picture.fromarray(slice_.astype(np.uint8)).save(tmp_path / "stack" / name)
        Picture.fromarray(draw_superalloy((400, 400), 2 * i)[0]).save(tmp_path / "apart" / name)
    assert likeness(str(tmp_path / "stack"), names) > ALIKE > likeness(str(tmp_path / "apart"), names)
    assert "neighbours look alike" in evident_stack(str(tmp_path / "stack")).because
    assert evident_stack(str(tmp_path / "apart")) is None
    found, notes = gather_images([str(tmp_path / "apart")], None)
    assert len(found) == 6
    assert "neighbours show different things" in notes[0]
    with pytest.raises(InputError, match="--stack"):
        assume_stack(tmp_path / "apart")


def test_real_micrographs_are_no_stack_and_real_slices_are(real_data: Path) -> None:
    from tilelab.io.images.alike import ALIKE, likeness

    for name in ("membrane", "superalloy", "axon", "particles", "coating"):
        folder = real_data / name / "train" / "images"
        alike = likeness(str(folder), sorted(path.name for path in folder.glob("*.png")))
        assert (alike > ALIKE) == (name == "membrane"), (name, alike)
