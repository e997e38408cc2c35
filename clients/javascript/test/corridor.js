/** An env agent with the corridor of examples/env_agent_from_scratch.py, for the tests. */

import { EnvAgent, spaces } from "../src/index.js";

const LAST = 10;

class Corridor {
  reset(seed) {
    this.position = Number(seed ?? 5) % LAST;
    return { observation: [this.position], info: { seed } };
  }

  async step(action) {
    if (action === 1) this.position += 1;
    else if (action === 0) this.position = Math.max(0, this.position - 1);
    else throw new RangeError(`${action} is neither 0 nor 1`);
    if (this.position === 9) await new Promise((done) => setTimeout(done, 20));
    const atEnd = this.position === LAST;
    return { observation: [this.position], reward: Number(atEnd), terminated: atEnd };
  }
}

export function serve(url, options) {
  return new EnvAgent(url, {
    address: "js/corridor",
    id: "Corridor-v0",
    observationSpace: spaces.box(0, 10, [1]),
    actionSpace: spaces.discrete(2),
    make: () => new Corridor(),
    capacity: 2,
  }, options);
}
