"""The choice of a learner for an environment's spaces, and saving and loading."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

from gymwire.learner_agent.training.learners import learner_for, load, save
from gymwire.learner_agent.training.price_bandits import PriceAgent
from gymwire.learner_agent.training.q_learning import QLearner
from gymwire.protocol.errors import ConfigurationError, NoLearnerFits


def test_a_market_gets_a_price_agent_of_its_size() -> None:
    agent = learner_for(Discrete(1), MultiDiscrete([3, 7], start=[1, 10]), seed=0)
    assert isinstance(agent, PriceAgent)
    assert len(agent.goods) == 3
    assert agent.goods[0].a.size == 7
    assert {int(agent.act(0, {})[0]) for _ in range(50)} == {1, 2, 3}


def test_discrete_observations_and_actions_get_q_learning() -> None:
    q = learner_for(Discrete(5), Discrete(3), seed=0)
    assert isinstance(q, QLearner)
    assert q.values.shape == (5, 3)


@pytest.mark.parametrize(
    ("observation_space", "action_space"),
    [
        (Box(-1, 1, (4,)), Discrete(2)),
        (Discrete(5), Box(-1, 1, (4,))),
        (Discrete(5), MultiDiscrete([3, 7])),  # a market that has states is no bandit
        (Discrete(1), MultiDiscrete([3, 7, 2])),
        (Discrete(1), MultiDiscrete(np.array([[3, 7], [2, 2]]))),
        (Dict(a=Discrete(2)), Discrete(2)),
        (Discrete(10**9), Discrete(10)),
        (Discrete(1), MultiDiscrete([10**5, 10**5])),
    ],
)
def test_if_no_learner_fits_the_error_lists_the_supported_spaces(
    observation_space: gymnasium.Space[Any], action_space: gymnasium.Space[Any]
) -> None:
    with pytest.raises(NoLearnerFits) as caught:
        learner_for(observation_space, action_space)
    text = str(caught.value)
    assert repr(observation_space) in text
    assert " ".join(repr(action_space).split()) in text
    assert "Supported: Discrete observations and actions" in text


def test_a_space_with_a_long_repr_is_shortened_in_the_error() -> None:
    space = Dict({f"sensor-{n}": Discrete(2) for n in range(500)})
    with pytest.raises(NoLearnerFits) as caught:
        learner_for(space, Discrete(2))
    assert len(str(caught.value)) < 700


def test_a_saved_learner_can_be_loaded(tmp_path: Path) -> None:
    q = QLearner(Discrete(3), Discrete(2), seed=0)
    q.learn(0, 1, 4.0, 1, True, False, {})
    save(q, tmp_path / "learner.npz", {"address": "frozen-lake", "seed": 0})
    other = QLearner(Discrete(3), Discrete(2))
    metadata = load(other, tmp_path / "learner.npz")
    assert metadata == {"address": "frozen-lake", "seed": 0, "learner": "QLearner"}
    assert other.values.tolist() == q.values.tolist()
    assert other.steps == 1
    assert [path.name for path in tmp_path.iterdir()] == ["learner.npz"]


def test_the_file_is_plain_npz_without_pickles_whatever_its_name(tmp_path: Path) -> None:
    save(PriceAgent(2, 3), tmp_path / "learner", {})
    with np.load(tmp_path / "learner", allow_pickle=False) as file:
        assert sorted(file) == ["a", "b", "metadata"]
        assert all(file[name].dtype != object for name in file)


def test_a_file_that_cannot_be_written_is_an_error_naming_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"missing.learner\.npz: No such file"):
        save(PriceAgent(2, 3), tmp_path / "missing" / "learner.npz", {})


def test_a_missing_file_is_an_error_naming_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"learner\.npz: No such file"):
        load(PriceAgent(2, 3), tmp_path / "learner.npz")


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def bomb() -> bytes:
    """Return a small archive of a large array."""
    file = io.BytesIO()
    np.savez_compressed(file, a=np.zeros(2**21), b=ONES, metadata=NOTE)
    return file.getvalue()


def claims(shape: str) -> bytes:
    """Return an archive of an array without data that claims this shape."""
    file, array = io.BytesIO(npz(b=ONES, metadata=NOTE)), io.BytesIO()
    np.lib.format.write_array(array, np.empty(0))
    header = array.getvalue().replace(b"(0,), }" + b" " * (len(shape) - 4), f"{shape}, }}".encode())
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("a.npy", header)
    return file.getvalue()


ONES = np.ones((2, 3))
NOTE = np.array('{"learner": "PriceAgent"}')


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "No data left|Cannot load"),
        (b"no archive at all", "pickled|Cannot load"),
        (pickle.dumps({"a": 1}), "not an .npz file"),
        (npz(a=ONES, b=ONES), "metadata"),
        (npz(a=ONES, metadata=NOTE), "b"),
        (npz(a=ONES, b=ONES, metadata=np.array("[]")), "Cannot load"),
        (npz(a=ONES, b=ONES, metadata=np.array('{"learner": "QLearner"}')), "by a QLearner"),
        (npz(a=np.ones((2, 4)), b=ONES, metadata=NOTE), r"\(2, 4\)"),
        (npz(a=ONES.astype(np.float32), b=ONES, metadata=NOTE), "float32"),
        (npz(a=ONES * np.nan, b=ONES, metadata=NOTE), "finite"),
        (npz(a=ONES * 0, b=ONES, metadata=NOTE), "below 1"),
        (npz(a=np.array([print]), b=ONES, metadata=NOTE), "allow_pickle"),
        (npz(a=ONES, b=ONES, metadata=NOTE)[:-40], "zip|Cannot load"),
        (bomb(), "holds more than"),
        (claims("(999999999999999,)"), "Cannot load"),
        (npz(a=ONES, b=ONES, metadata=np.array("[" * 100_000)), "Cannot load"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = tmp_path / "learner.npz"
    path.write_bytes(content)
    agent = PriceAgent(2, 3)
    with pytest.raises(ConfigurationError, match=complaint):
        load(agent, path)
    assert (agent.state()["a"] == 1).all()
