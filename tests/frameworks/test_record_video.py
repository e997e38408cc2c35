"""Videos of a remote environment: Gymnasium's RecordVideo, and `gymwire run --video`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from gymnasium.wrappers import RecordVideo

from gymwire import ProxyEnv
from tests.cli.reading import Screen, call
from tests.processes import Programs

pytestmark = pytest.mark.skipif(
    find_spec("moviepy") is None or find_spec("pygame") is None, reason="needs moviepy and pygame"
)


@pytest.fixture
def url(programs: Programs) -> str:
    url = programs.broker()[1]
    programs.env_agent(url, "pole", "CartPole-v1")
    return url


def duration(path: Path) -> float:
    from moviepy import VideoFileClip

    with VideoFileClip(str(path)) as clip:
        assert clip.size == [600, 400]
        return float(clip.duration)


def test_the_wrapper_records_a_remote_environment(url: str, tmp_path: Path) -> None:
    proxy = ProxyEnv("pole", url, wait_s=20, render_mode="rgb_array")
    env = RecordVideo(proxy, str(tmp_path / "videos"), disable_logger=True)
    env.reset(seed=1)
    steps, over = 0, False
    while not over:
        over, steps = bool(env.step(1)[2]), steps + 1
    env.close()  # type: ignore[no-untyped-call]
    [path] = tmp_path.glob("videos/*.mp4")
    assert duration(path) == pytest.approx((steps + 1) / 50, abs=0.03)


def test_the_command_records_a_remote_environment(url: str, tmp_path: Path) -> None:
    path, screen = tmp_path / "pole.mp4", Screen()
    arguments = ("--episodes", "2", "--seed", "1", "--video", str(path), "--json")
    assert call(screen, "run", "pole", "--broker", url, *arguments) == 0
    frames = sum(one["steps"] + 1 for one in screen.json["episodes"])
    assert duration(path) == pytest.approx(frames / 50, abs=0.03)
