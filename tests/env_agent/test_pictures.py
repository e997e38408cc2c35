"""Pictures for watchers, read by another program."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gymwire.env_agent.pictures import TEXT_BYTES, shown

MIB = 1024 * 1024
NOISE = np.random.default_rng(1)


def noise(*shape: int) -> Any:
    return NOISE.integers(0, 256, shape, np.uint8)


def read(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("shape", [(4, 6, 3), (4, 6, 4), (4, 6, 2), (1, 1, 3), (5, 7)])
def test_a_picture_is_a_png_with_the_same_pixels(shape: tuple[int, ...]) -> None:
    pixels = noise(*shape)
    media_type, data = shown(pixels, MIB)
    assert media_type == "image/png"
    np.testing.assert_array_equal(read(data), pixels)


def test_a_single_channel_is_gray() -> None:
    pixels = noise(3, 4, 1)
    np.testing.assert_array_equal(read(shown(pixels, MIB)[1]), pixels[..., 0])


def test_a_view_of_an_array_is_shown() -> None:
    pixels = noise(8, 8, 3)[::-1, ::2]
    np.testing.assert_array_equal(read(shown(pixels, MIB)[1]), pixels)


@pytest.mark.parametrize(
    "shape", [(800, 1200, 3), (1, 2_000_000, 1), (3, 5_000_000, 4), (3_000_000, 1, 1)]
)
@pytest.mark.parametrize("limit", [64 * 1024, MIB])
def test_a_large_picture_loses_rows_and_columns(shape: tuple[int, ...], limit: int) -> None:
    pixels = noise(*shape)
    _, data = shown(pixels, limit)
    assert limit / 8 < len(data) <= limit
    found = read(data)
    step = max(-(-shape[0] // found.shape[0]), -(-shape[1] // found.shape[1]))
    np.testing.assert_array_equal(found.reshape(-1), pixels[::step, ::step].reshape(-1))


def test_a_text_is_cut_between_two_characters() -> None:
    assert shown("#.@\n…", MIB) == ("text/plain", "#.@\n…".encode())
    media_type, data = shown("…" * TEXT_BYTES, MIB)
    assert media_type == "text/plain"
    assert TEXT_BYTES - 3 < len(data) <= TEXT_BYTES
    assert set(data.decode()) == {"…"}


@pytest.mark.parametrize(
    ("frame", "what"),
    [
        (None, "NoneType"),
        ([noise(2, 2, 3)], "list"),
        (np.zeros((2, 2, 3)), "an array of float64"),
        (noise(2, 2, 5), "the shape (2, 2, 5)"),
        (noise(0, 2, 3), "the shape (0, 2, 3)"),
    ],
)
def test_what_is_no_picture_is_named(frame: Any, what: str) -> None:
    with pytest.raises(TypeError) as wrong:
        shown(frame, MIB)
    assert what in str(wrong.value)
