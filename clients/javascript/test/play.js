/** A learner that plays, for the tests: returns what it has seen. */

import { Learner } from "../src/index.js";

export async function play(url, address, seed, actions) {
  const learner = new Learner(url);
  const session = await learner.open(address);
  const seen = [];
  const { observation } = await session.reset({ seed });
  seen.push([...observation.data].map(Number));
  for (const action of actions) {
    const step = await session.step(action);
    seen.push([[...step.observation.data].map(Number), step.reward, step.terminated, step.truncated]);
  }
  await session.close();
  learner.close();
  return seen;
}
