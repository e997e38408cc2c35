"""ProxyEnv behaves like any other gymnasium.Env, tested with real processes."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics, RecordVideo, TimeLimit

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.protocol.errors import (
    AttributeDenied,
    ConfigurationError,
    EnvironmentClosed,
    MoveError,
    NoFreeSlot,
    ResetNeeded,
    UsageError,
)
from tests import prefork
from tests.processes import PATIENCE_S, programs
from tests.quick_attributes import has_quick_attributes
from tests.sameness import assert_same
from tests.time_limits import times_out

pytestmark = pytest.mark.usefixtures("patient")

OFFERS = """
[[offer]]
address = "cartpole"
env = "CartPole-v1"

[[offer]]
address = "frozen-lake"
env = "FrozenLake-v1"

[[offer]]
address = "odd"
env = "tests.odd_envs:Odd"
expose = ["gravity", "scaled", "no_such_thing"]

[[offer]]
address = "patient"
env = "tests.odd_envs:Patient"

[[offer]]
address = "single"
env = "CartPole-v1"
max_sessions = 1
"""
MADE = "gymwire:gymwire/Proxy-v0"
Env = gymnasium.Env[Any, Any]


@pytest.fixture(scope="module")
def broker(broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config: Path = tmp_path_factory.mktemp("proxy_env") / "offers.toml"
    config.write_text(OFFERS)
    with programs() as started:
        started.env_agent(broker_url, "--config", str(config))
        yield broker_url


@pytest.fixture
def cartpole(broker: str) -> Iterator[ProxyEnv]:
    with ProxyEnv("cartpole", broker) as env:
        yield env


@pytest.fixture
def odd(broker: str) -> Iterator[ProxyEnv]:
    with ProxyEnv("odd", broker) as env:
        yield env


# --- as gymnasium.Env -------------------------------------------------------------------------


def _warnings_of_check(env: Env) -> list[str]:
    with warnings.catch_warnings(record=True) as caught, env:
        warnings.simplefilter("always")
        check_env(env)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("address", "env_id"), [("cartpole", "CartPole-v1"), ("frozen-lake", "FrozenLake-v1")]
)
def test_the_environment_checker_gives_the_same_warnings_as_for_the_local_environment(
    broker: str, address: str, env_id: str
) -> None:
    local = _warnings_of_check(gymnasium.make(env_id).unwrapped)
    assert _warnings_of_check(ProxyEnv(address, broker)) == local
    made = gymnasium.make(MADE, address=address, broker=broker)
    assert _warnings_of_check(made.unwrapped) == local


def test_the_attributes_that_a_step_reads_are_quick_to_read(broker: str) -> None:
    with ProxyEnv("cartpole", broker) as env:
        env.reset(seed=1)
        env.step(0)
        owner = env._owner
        assert has_quick_attributes(owner, "exchange")
        assert has_quick_attributes(owner.session, "exchange")
        assert has_quick_attributes(owner.session.paths, "current")
        assert has_quick_attributes(owner.exchange, "returned")


def test_the_spec_has_the_fields_of_the_remote_one(cartpole: ProxyEnv) -> None:
    local = gymnasium.spec("CartPole-v1")
    spec = cartpole.spec
    assert spec is not None
    assert (spec.id, spec.max_episode_steps, spec.reward_threshold, spec.nondeterministic) == (
        local.id,
        local.max_episode_steps,
        local.reward_threshold,
        local.nondeterministic,
    )


def test_the_spec_makes_another_proxy(cartpole: ProxyEnv) -> None:
    assert cartpole.spec is not None
    with cartpole.spec.make() as other:
        assert isinstance(other.unwrapped, ProxyEnv)
        assert_same(cartpole.reset(seed=3), other.reset(seed=3))


def test_gymnasium_make_gives_a_proxy_with_the_limits_of_the_remote_spec(broker: str) -> None:
    with gymnasium.make(MADE, address="cartpole", broker=broker) as env:
        assert type(env) is ProxyEnv
        assert env.spec is not None
        assert (env.spec.id, env.spec.max_episode_steps) == ("gymwire/Proxy-v0", 500)


def test_the_proxy_of_an_environment_without_a_spec_has_none(odd: ProxyEnv) -> None:
    assert odd.spec is None


def test_options_reach_the_environment(odd: ProxyEnv) -> None:
    options = {"start": (1, 2), "map": np.eye(2)}
    assert_same(odd.reset(options=options), (0, {"options": options}))


def test_what_step_returns_belongs_to_the_caller(cartpole: ProxyEnv) -> None:
    first, _ = cartpole.reset(seed=1)
    second, *_ = cartpole.step(0)
    kept = second.copy()
    first[:] = 7
    cartpole.step(1)
    assert np.array_equal(second, kept)
    assert second.flags.writeable
    second[:] = 7
    assert not np.array_equal(cartpole.step(1)[0], second)


def test_two_environments_at_one_address_are_independent(broker: str) -> None:
    with ProxyEnv("cartpole", broker) as a, ProxyEnv("cartpole", broker) as b:
        a.reset(seed=1)
        b.reset(seed=1)
        a.step(0)
        a.step(0)
        assert_same(b.step(1), _local_cartpole(1, [1]))


def _local_cartpole(seed: int, actions: list[int]) -> Any:
    with gymnasium.make("CartPole-v1") as env:
        env.reset(seed=seed)
        return [env.step(action) for action in actions][-1]


def test_its_generator_is_in_the_state_of_the_remote_one(cartpole: ProxyEnv) -> None:
    cartpole.reset(seed=5)
    with gymnasium.make("CartPole-v1") as local:
        local.reset(seed=5)
        assert cartpole.np_random.random() == local.np_random.random()
    assert cartpole.np_random_seed == 5


def test_setting_its_generator_sets_the_remote_one(cartpole: ProxyEnv) -> None:
    with pytest.raises(UsageError, match="np_random must be"):
        cartpole.np_random = 5  # type: ignore[assignment]
    cartpole.np_random = np.random.default_rng(11)
    with gymnasium.make("CartPole-v1") as local:
        local.np_random = np.random.default_rng(11)
        assert_same(cartpole.reset(), local.reset())
    assert cartpole.np_random_seed == -1


# --- rendering and wrappers -------------------------------------------------------------------


def test_frames_are_the_local_ones(broker: str) -> None:
    with (
        ProxyEnv("cartpole", broker, render_mode="rgb_array") as env,
        gymnasium.make("CartPole-v1", render_mode="rgb_array") as local,
    ):
        env.reset(seed=2)
        local.reset(seed=2)
        assert env.render_mode == "rgb_array"
        assert_same(env.render(), local.render())


def test_text_is_rendered(broker: str) -> None:
    with ProxyEnv("odd", broker, render_mode="ansi") as env:
        env.reset()
        env.step(0)
        assert env.render() == "step 1"


def test_frames_are_collected_by_gymnasiums_wrapper(broker: str) -> None:
    made = gymnasium.make(MADE, address="cartpole", broker=broker, render_mode="rgb_array_list")
    with made as env:
        env.reset(seed=1)
        env.step(0)
        frames: Any = env.render()
    assert type(frames) is list
    assert [frame.shape for frame in frames] == [(400, 600, 3)] * 2


def test_human_rendering_shows_the_frames_locally(broker: str) -> None:
    with gymnasium.make(MADE, address="cartpole", broker=broker, render_mode="human") as env:
        env.reset(seed=1)
        env.step(0)
        assert env.render_mode == "human"
        assert env.get_wrapper_attr("screen_size") == (600, 400)


def test_the_class_itself_refuses_human_rendering_and_names_gymnasium_make(broker: str) -> None:
    with pytest.raises(ConfigurationError, match=r"gymnasium\.make"):
        ProxyEnv("cartpole", broker, render_mode="human")


@pytest.mark.parametrize("proxy", [ProxyEnv, partial(ProxyVectorEnv, num_envs=2, sessions=2)])
def test_a_render_mode_that_the_environment_lacks_is_a_warning(broker: str, proxy: Any) -> None:
    said = (
        r"'cartpole' .* render_mode='ansi', which is not in its render_modes \(\[('human', )?'rgb"
    )
    with pytest.warns(UserWarning, match=said):
        env = proxy("cartpole", broker=broker, render_mode="ansi")
    env.close()


def test_a_video_of_it_can_be_recorded(broker: str, tmp_path: Path) -> None:
    proxy = gymnasium.make(MADE, address="cartpole", broker=broker, render_mode="rgb_array")
    with RecordVideo(proxy, str(tmp_path / "videos"), disable_logger=True) as env:
        env.reset(seed=1)
        for _ in range(3):
            env.step(0)
    assert [path.suffix for path in (tmp_path / "videos").iterdir()] == [".mp4"]


def test_wrappers_count_and_limit_its_steps(broker: str) -> None:
    proxy = gymnasium.make(MADE, address="cartpole", broker=broker)
    with RecordEpisodeStatistics(TimeLimit(proxy, 3)) as env:
        env.reset(seed=1)
        *_, info = [env.step(0) for _ in range(3)][-1]
    assert (info["episode"]["l"], info["episode"]["r"]) == (3, 3.0)


# --- attributes -------------------------------------------------------------------------------


def test_exposed_methods_can_be_called(odd: ProxyEnv) -> None:
    odd.reset()
    odd.step(0)
    masks = odd.action_masks
    assert_same(masks(), np.arange(10) > 1)
    odd.step(0)
    assert_same(masks(), np.arange(10) > 2)
    assert odd.scaled(2.5, offset=1.0) == 6.0


def test_methods_are_found_through_wrappers(odd: ProxyEnv) -> None:
    wrapped = TimeLimit(odd, 5)
    wrapped.reset()
    assert wrapped.get_wrapper_attr("action_masks")().dtype == np.bool_


def test_exposed_attributes_can_be_read_and_set(odd: ProxyEnv) -> None:
    odd.gravity = 1.6
    assert odd.gravity == 1.6
    assert "gravity" not in vars(odd)
    TimeLimit(odd, 5).set_wrapper_attr("gravity", 3.7)
    assert odd.gravity == 3.7


def test_the_error_for_other_attributes_lists_the_exposed_ones_and_how_to_expose_more(
    cartpole: ProxyEnv,
) -> None:
    text = (
        r"'cartpole' does not expose 'gravity'\. .* --expose gravity, .* --wrap\. "
        r"Exposed now: .*action_masks"
    )
    with pytest.raises(AttributeDenied, match=text):
        _ = cartpole.gravity
    with pytest.raises(AttributeDenied, match=text):
        cartpole.gravity = 500.0
    assert "gravity" not in vars(cartpole)
    with pytest.raises(AttributeDenied, match="--expose gravity"):
        TimeLimit(cartpole, 5).unwrapped.gravity = 500.0  # type: ignore[attr-defined]
    wrapped = TimeLimit(cartpole, 5)
    with pytest.raises(AttributeDenied, match="--expose gravity"):
        wrapped.set_wrapper_attr("gravity", 500.0)
    assert "gravity" not in vars(wrapped)


def test_a_wrapper_keeps_its_private_attributes(cartpole: ProxyEnv) -> None:
    wrapped = TimeLimit(cartpole, 5)
    wrapped.set_wrapper_attr("_private", 3)
    assert vars(wrapped)["_private"] == 3
    cartpole._mine = 1
    wrapped.set_wrapper_attr("_mine", 2)
    assert vars(cartpole)["_mine"] == 2


@pytest.mark.parametrize("name", ["render_mode", "observation_space", "metadata", "_private"])
def test_attributes_of_the_proxy_itself_can_be_set(cartpole: ProxyEnv, name: str) -> None:
    setattr(cartpole, name, "mine")
    assert getattr(cartpole, name) == "mine"


def test_a_subclass_declares_attributes_of_its_own(broker: str) -> None:
    class Counting(ProxyEnv):
        count: int

        def __init__(self, *args: str) -> None:
            super().__init__(*args)
            self.count = 0

    with Counting("cartpole", broker) as env:
        env.count += 1
        assert env.count == 1


def test_an_attribute_that_the_remote_environment_lacks_is_an_attribute_error(
    odd: ProxyEnv,
) -> None:
    assert not hasattr(odd, "no_such_thing")
    assert not hasattr(odd, "_private")


def test_a_wrapper_that_reads_a_private_attribute_should_run_at_the_env_agent(
    cartpole: ProxyEnv,
) -> None:
    class Skipping(gymnasium.Wrapper[Any, Any, Any, Any]):
        def __init__(self, env: Env) -> None:
            super().__init__(env)
            if getattr(env.unwrapped, "_frameskip", None) != 1:  # as AtariPreprocessing
                raise ValueError("Disable it")

    with (
        pytest.warns(
            UserWarning, match=r"Skipping reads .*'_frameskip'.* --wrap tests\."
        ) as caught,
        pytest.raises(ValueError, match="Disable"),
    ):
        Skipping(cartpole)
    assert caught[0].filename == __file__
    assert not hasattr(cartpole, "_frameskip")  # anybody else is not warned


# --- the end, copies, forks -------------------------------------------------------------------


def test_closing_twice_is_closing_once(broker: str) -> None:
    env = ProxyEnv("cartpole", broker)
    env.reset()
    env.close()
    env.close()
    with pytest.raises(EnvironmentClosed):
        env.step(0)
    with pytest.raises(EnvironmentClosed):
        env.reset()


def test_a_closed_environment_frees_its_slot(broker: str) -> None:
    for _ in range(3):
        with ProxyEnv("single", broker) as env:
            env.reset()


def test_a_forgotten_environment_frees_its_slot(broker: str) -> None:
    env = ProxyEnv("single", broker)
    env.reset()
    del env
    gc.collect()
    _eventually(lambda: ProxyEnv("single", broker)).close()


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "env.step('no action')"])
def test_a_script_that_does_not_close_frees_its_slot(broker: str, end: str) -> None:
    script = f"""
from gymwire import ProxyEnv, ProxyVectorEnv
env = ProxyEnv("single", {broker!r})
env.reset(seed=1)
{end}
"""
    done = prefork.run(["-c", script], env=os.environ, timeout=PATIENCE_S)
    assert bool(done.returncode) is bool(end), done.stderr
    _eventually(lambda: ProxyEnv("single", broker)).close()


def _eventually(make: Callable[[], ProxyEnv]) -> ProxyEnv:
    """Retry: BYE and the next request come over two connections, in either order."""
    for _ in range(100):
        try:
            return make()
        except NoFreeSlot:
            continue
    return make()


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))],
    ids=["copy", "pickle"],
)
def test_a_copy_has_its_own_session_which_must_be_reset(
    cartpole: ProxyEnv, duplicate: Callable[[ProxyEnv], ProxyEnv]
) -> None:
    cartpole.reset(seed=4)
    cartpole.action_space.seed(9)
    with duplicate(cartpole) as other:
        with pytest.raises(ResetNeeded):
            other.step(0)
        assert_same(other.action_space.sample(), cartpole.action_space.sample())
        other.reset(seed=8)
        assert_same(cartpole.step(1), _local_cartpole(4, [1]))
        assert_same(other.step(0), _local_cartpole(8, [0]))
        assert other.spec == cartpole.spec


def test_what_gymnasium_made_can_be_copied_with_its_wrappers(broker: str) -> None:
    made = gymnasium.make(MADE, address="cartpole", broker=broker, max_episode_steps=2)
    with made as env, copy.deepcopy(env) as other:
        assert_same(env.reset(seed=1), other.reset(seed=1))


def _in_a_fork(body: Callable[[], None]) -> bool:
    """Run this in a forked process, and return whether it succeeded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python ≥ 3.12 warns of threads
        pid = os.fork()
    if pid == 0:
        try:
            body()
        except BaseException:  # noqa: BLE001 - nothing may reach the test runner's copy
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def _after_reset(seed: int) -> np.random.Generator:
    local = gymnasium.make("CartPole-v1")
    local.reset(seed=seed)
    return local.unwrapped.np_random


@pytest.mark.parametrize("reads_before", [False, True])
def test_a_fork_needs_a_reset_and_leaves_the_parents_episode_alone(
    cartpole: ProxyEnv, reads_before: bool
) -> None:
    cartpole.reset(seed=1)
    kept = cartpole.np_random if reads_before else None

    def child() -> None:
        with pytest.raises(ResetNeeded, match="before the process forked"):
            cartpole.step(0)
        for _ in range(2):
            with pytest.raises(ResetNeeded, match="before the process forked"):
                (cartpole.np_random if kept is None else kept).random()
        cartpole.reset(seed=2)
        assert cartpole.np_random.random() == _after_reset(2).random()
        assert_same(cartpole.step(1), _local_cartpole(2, [1]))
        cartpole.close()

    assert _in_a_fork(child)
    assert_same(cartpole.step(0), _local_cartpole(1, [0]))


def test_a_fork_that_only_drops_it_leaves_the_parents_session_alone(cartpole: ProxyEnv) -> None:
    cartpole.reset(seed=1)
    held = [cartpole]

    def child() -> None:
        held.clear()
        gc.collect()

    def closing_child() -> None:
        cartpole.close()

    assert _in_a_fork(child)
    assert _in_a_fork(closing_child)
    assert_same(cartpole.step(0), _local_cartpole(1, [0]))


# --- interrupted ------------------------------------------------------------------------------


def test_a_step_that_timed_out_is_waited_for_by_calling_it_again(
    broker: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    with ProxyEnv("patient", broker) as env:
        env.reset(options={"gate": str(gate)})
        with times_out(env, "Call it again with the same arguments"):
            env.step(1)
        with pytest.raises(MoveError, match="still under way"):
            env.step(2)
        with pytest.raises(MoveError, match="still under way"):
            env.render()
        gate.touch()
        assert env.step(1) == (1, 0.0, False, False, {"action": 1})
        assert env.step(2) == (2, 0.0, False, False, {"action": 2})


def test_an_answer_that_comes_while_another_is_waited_for_is_kept_for_its_step(
    broker: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    with contextlib.closing(BrokerConnection(broker)) as connection:
        slow = ProxyEnv("patient", connection=connection)
        quick = ProxyEnv("cartpole", connection=connection)
        slow.reset(options={"gate": str(gate)})
        quick.reset(seed=1)
        with times_out(slow):
            slow.step(1)
        gate.touch()
        while not slow._session.ready:  # it arrives at the connection that both share
            if quick.step(0)[2]:
                quick.reset()
        with pytest.raises(MoveError, match="same arguments"):
            slow.step(0)
        assert slow.step(1) == (1, 0.0, False, False, {"action": 1})
        assert slow.step(2) == (2, 0.0, False, False, {"action": 2})


def test_a_reset_abandons_a_step_that_timed_out(broker: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with ProxyEnv("patient", broker) as env:
        options = {"gate": str(gate)}
        env.reset(options=options)
        with times_out(env):
            env.step(1)
        gate.touch()
        observation, info = env.reset(options=options)
        assert (observation, info) == (0, {"options": options})
        assert env.step(5)[4] == {"action": 5}


def test_an_interrupted_step_is_waited_for_by_calling_it_again(broker: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with ProxyEnv("patient", broker) as env:
        env.reset(options={"gate": str(gate)})
        interrupt = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            env.step(1)
        gate.touch()
        assert env.step(1)[0] == 1
        assert env.step(1)[0] == 2


# --- how it is made ---------------------------------------------------------------------------


def test_address_and_broker_come_from_the_environment_variables(
    broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GYMWIRE_ADDRESS", "frozen-lake")
    monkeypatch.setenv("GYMWIRE_BROKER", broker)
    with ProxyEnv() as env:
        assert env.observation_space == gymnasium.spaces.Discrete(16)


def test_keyword_arguments_reach_the_constructor(broker: str) -> None:
    with ProxyEnv("frozen-lake", broker, env_kwargs={"map_name": "8x8"}) as env:
        assert env.observation_space == gymnasium.spaces.Discrete(64)


def test_several_environments_can_share_a_connection(broker: str) -> None:
    connection = BrokerConnection(broker)
    with (
        ProxyEnv("cartpole", connection=connection) as a,
        ProxyEnv("odd", connection=connection) as b,
    ):
        a.reset(seed=1)
        b.reset()
        a.close()
        assert b.step(0)[0] == 1
    connection.close()


def test_a_connection_may_be_closed_before_its_environments(broker: str) -> None:
    connection = BrokerConnection(broker)
    env = ProxyEnv("cartpole", connection=connection)
    connection.close()
    connection.close()
    env.close()


def test_a_proxy_prints_nothing_into_the_output_of_a_script(broker: str) -> None:
    code = f"from gymwire import ProxyEnv; ProxyEnv('cartpole', {broker!r}).reset()"
    script = [sys.executable, "-X", "dev", "-c", code]
    ran = subprocess.run(script, capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("", "")
