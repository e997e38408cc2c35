"""The codecs of spaces that sessions share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box

from gymwire.protocol import space_cache, spaces
from gymwire.protocol.space_cache import MAX_CODECS, MAX_KEY, codec_of


def description(count: int, seed: int) -> list[list[Any]]:
    high = np.random.default_rng(seed).random(count, np.float32)
    return spaces.describe(Box(-high, high))


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space_cache, "_CODECS", {})
    monkeypatch.setattr(space_cache, "_SHARED", {})


def test_equal_descriptions_share_a_codec() -> None:
    assert codec_of(description(3, 1), "space") is codec_of(description(3, 1), "space")
    assert codec_of(description(3, 1), "space") is not codec_of(description(3, 2), "space")


def test_a_large_description_is_shared_until_there_is_another_one() -> None:
    large = description(MAX_KEY, 1)
    codec = codec_of(large, "space")
    assert codec_of(large, "space") is codec
    others = [description(MAX_KEY, seed) for seed in range(2, 5)]
    for other in others:
        codec_of(other, "space")
    assert list(space_cache._SHARED) == [id(others[-1])]
    assert not space_cache._CODECS


def test_the_codecs_that_are_kept_are_few() -> None:
    for seed in range(2 * MAX_CODECS):
        codec_of(description(3, seed), "space")
    assert len(space_cache._CODECS) <= MAX_CODECS
    assert len(space_cache._SHARED) <= MAX_CODECS
