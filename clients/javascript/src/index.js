/** Env agents and learners of gymwire over WebSockets, for browsers and Node. */

export { EnvAgent } from "./env_agent.js";
export { GymwireError, Learner, Session } from "./learner.js";
export { Float, NDArray, Tuple } from "./values.js";
export * as spaces from "./spaces.js";
