"""Vectors of environments (§4.1.1 to §4.1.3, §4.4)."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector.utils import batch_space, iterate

from gymwire.conformance.agent import Agent
from gymwire.conformance.check import Check, Skipped, check, expect
from gymwire.conformance.checks.attributes import GENERATOR, names_of, read_all, result
from gymwire.conformance.session import Session, build
from gymwire.protocol import capabilities, spaces, vector_infos
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.messages import Call, Code, Error, Percept, Reset

CHECKS: list[Check] = []
COUNT = 3  # environments in a vector
SEED = 5
MOST_STEPS = 300  # in which an episode should end
PLAIN_ENVS = {"vectorization_mode": "sync"}
ARRAYS = (Box, Discrete, MultiBinary, MultiDiscrete)  # the spaces whose values are arrays


def vector(agent: Agent, mode: str = "NextStep") -> Session:
    """Open a vector of single environments (§4.4.5). Raises Skipped if there is none."""
    asked = {"num_envs": COUNT, "autoreset_mode": mode}
    answer = agent.try_open(**asked, env_kwargs=PLAIN_ENVS)
    if isinstance(answer, Error):
        answer = agent.try_open(**asked)
    if isinstance(answer, Error):
        refused = answer.code == Code.OPEN_FAILED
        expect(refused, f"OPENED, or ERROR {Code.OPEN_FAILED}", answer, "4.2.1")
        raise Skipped(f"it has no vectors with the autoreset mode {mode}")
    return answer


def infos_of(info: Any) -> dict[Any, Any]:
    """Return the infos of a vector. Raises Violation."""
    try:
        infos = vector_infos.from_wire(info)[0]
    except DecodingError as error:
        infos = str(error)
    expect(isinstance(infos, dict), "a map, or [infos, places, casts]", infos, "4.1.2")
    return infos  # type: ignore[no-any-return]


@check(CHECKS, "4.4.1", "batches the spaces of a vector")
def batched_spaces(agent: Agent) -> None:
    """Compare the spaces in OPENED."""
    session = vector(agent)
    opened = session.opened
    expect(opened.num_envs == COUNT, f"`num_envs` {COUNT}", opened.num_envs, "4.2.2")
    for name in ("observation_space", "action_space"):
        single = build(getattr(opened, f"single_{name}"), f"single_{name}")
        expected = spaces.describe(batch_space(single, COUNT))
        actual = spaces.describe(getattr(session, name))
        expect(actual == expected, f"the {name} {expected}", actual)
    mode = opened.metadata.get("autoreset_mode")
    expect(mode == "NextStep", "NextStep as metadata's autoreset_mode", mode, "4.2.2")


@check(CHECKS, "4.4.1", "batches rewards and flags")
def batched_percepts(agent: Agent) -> None:
    """Step, and check the types."""
    session = vector(agent)
    session.reset(SEED)
    _typed(session.step())


def _typed(percept: Percept) -> Percept:
    """Check the types of a percept, and the masks of its infos."""
    dtypes = {"reward": np.float64, "terminated": np.bool_, "truncated": np.bool_}
    for name, dtype in dtypes.items():
        value = getattr(percept, name)
        fine = isinstance(value, np.ndarray) and (value.shape, value.dtype) == ((COUNT,), dtype)
        expect(fine, f"{name} as an array of {COUNT} {dtype.__name__}", value, "4.4.1")
    infos = infos_of(percept.info)
    for key, value in infos.items():
        batched = isinstance(value, np.ndarray) and value.shape[:1] == (COUNT,)
        if batched and isinstance(key, str) and not key.startswith("_"):
            mask = infos.get(f"_{key}")
            fine = isinstance(mask, np.ndarray) and (mask.shape, mask.dtype) == ((COUNT,), np.bool_)
            expect(fine, f"`_{key}`, an array of {COUNT} bools, beside `{key}`", mask, "4.4.3")
    return percept


@check(CHECKS, "4.4.2", "seeds each environment of a vector by itself")
def seeds(agent: Agent) -> None:
    """Compare the first observations with those of plain environments with these seeds."""
    plain = agent.open()
    if not isinstance(plain.observation_space, ARRAYS):
        raise Skipped("its observations are not single arrays")
    firsts = [_first(plain, SEED + i) for i in range(COUNT)]
    if firsts != [_first(plain, SEED + i) for i in range(COUNT)]:
        raise Skipped("its environment is not deterministic, so that this cannot be seen")
    session = vector(agent)
    numbers = [SEED + i for i in range(COUNT)]
    for seed in (SEED, numbers):
        rows = _rows(session, session.reset(seed).observation)
        expect(rows == firsts, f"the seeds {numbers} with the seed {seed}", rows)
    rows = _rows(session, session.reset([None, SEED + 1, None]).observation)
    expect(rows[1] == firsts[1], f"the seed {SEED + 1} in environment 1", rows)


def _first(plain: Session, seed: int) -> Any:
    return np.asarray(plain.reset(seed).observation).tolist()


def _rows(session: Session, observations: Any) -> list[Any]:
    rows = iterate(session.observation_space, observations)
    return [np.asarray(row).tolist() for row in rows]


def until_end(session: Session) -> tuple[Percept, int]:
    """Step until an episode has ended. Returns the last percept, and whose. Raises Skipped."""
    for _ in range(MOST_STEPS):
        percept = _typed(session.step())
        ended = percept.terminated | percept.truncated
        if ended.any():
            return percept, int(ended.argmax())
    raise Skipped(f"no episode has ended within {MOST_STEPS} steps")


@check(CHECKS, "4.4.4", "resets in the next step with NextStep")
def next_step(agent: Agent) -> None:
    """Step until an episode has ended, and once more."""
    session = vector(agent)
    session.reset(SEED)
    _, index = until_end(session)
    percept = _typed(session.step())
    flags = [bool(percept.terminated[index]), bool(percept.truncated[index])]
    actual = (float(percept.reward[index]), *flags)
    text = f"reward 0 and no end in environment {index}"
    expect(actual == (0.0, False, False), text, actual)


@check(CHECKS, "4.4.4", "resets in the same step with SameStep")
def same_step(agent: Agent) -> None:
    """Step until an episode has ended."""
    session = vector(agent, "SameStep")
    session.reset(SEED)
    percept, index = until_end(session)
    infos = infos_of(percept.info)
    for key in ("final_obs", "final_info"):
        expect(key in infos, f"`{key}` in the infos", [*infos])
    mask = infos.get("_final_obs")
    fine = isinstance(mask, np.ndarray) and bool(mask[index])
    expect(fine, f"`_final_obs` true for environment {index}", mask, "4.4.3")


@check(CHECKS, "4.4.4", "resets those of a mask with Disabled")
def disabled(agent: Agent) -> None:
    """Step until an episode has ended, and reset that environment alone."""
    session = vector(agent, "Disabled")
    session.reset(SEED)
    percept, index = until_end(session)
    if percept.terminated.all() | percept.truncated.all():
        raise Skipped("all episodes ended at once")
    mask = np.arange(COUNT) == index
    status = session.must(Reset(None, {"reset_mask": mask}))
    if isinstance(build(session.opened.single_observation_space, "space"), ARRAYS):
        before, after = (_rows(session, one.observation) for one in (percept, status))
        kept = [one for i, one in enumerate(after) if i != index]
        expected = [one for i, one in enumerate(before) if i != index]
        expect(kept == expected, f"only environment {index} is reset", after, "4.4.2")


@check(CHECKS, "4.1", "reads an attribute of each environment of a vector")
def attributes(agent: Agent) -> None:
    """Get each; set those with values to a list, and to one value for all."""
    session = vector(agent)
    names_of(session)
    session.reset(SEED)
    for name, found in read_all(session):
        if not (isinstance(found, dict) and "value" in found):
            continue
        value = found["value"]
        fine = isinstance(value, tuple) and len(value) == COUNT
        expect(fine, f"a tuple of {COUNT} values of {name}", value)
        if name != GENERATOR:
            result(session.ask(Call("set", name, ([*value],))))
    session.reset(SEED)


@check(CHECKS, "4.1.3", "reads an attribute of some environments of a vector")
def each(agent: Agent) -> None:
    """Get an attribute of the last environment, and of all."""
    session = vector(agent)
    if capabilities.EACH not in (session.opened.limits.get("capabilities") or ()):
        raise Skipped("it does not have the capability `each`")
    name = names_of(session)[0]
    session.reset(SEED)
    for numbers in ([*range(COUNT)], [COUNT - 1]):
        found = result(session.ask(Call("each-get", name, (numbers,))))
        # A vector that does not consist of single environments accepts only the list of all.
        if found is not None:
            fine = isinstance(found.value, tuple) and len(found.value) == len(numbers)
            expect(fine, f"a tuple of {len(numbers)} items", found)
