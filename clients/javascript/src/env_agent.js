/** An env agent: it offers environments at an address (docs/protocol.md §0). */

import { COMPACT, CONTROL, Connection, Kind, encodeFrame } from "./connection.js";
import { fromCompact, toWire } from "./spaces.js";
import { Float, pack } from "./values.js";

/**
 * @typedef {object} Env
 * @property {(seed: number | bigint | null, options: any) => any} reset returns the observation, or
 *   `{observation, info}`; may be async
 * @property {(action: any) => any} step returns `{observation, reward, terminated, truncated, info}`;
 *   may be async
 * @property {() => void} [close]
 */

/**
 * @typedef {object} Offer
 * @property {string} address such as "games/pong"
 * @property {string} id the environment's id, such as "Pong-v0"
 * @property {import("./spaces.js").Space} observationSpace
 * @property {import("./spaces.js").Space} actionSpace
 * @property {() => Env | Promise<Env>} make returns a new environment
 * @property {number} [capacity] how many sessions at once
 */

const REPORT_MS = 1000;
const COUNTS = new Map(/** @type {[number, number][]} */ ([[Kind.RESET, 2], [Kind.ACT, 1], [Kind.CLOSE, 0], [Kind.RENDER, 0], [Kind.CALL, 4]]));

/** Serves one offer until it is closed. Its environments run in this thread. */
export class EnvAgent {
  /**
   * @param {string} url of a gateway, such as "ws://127.0.0.1:8080/ws"
   * @param {Offer} offer
   * @param {import("./connection.js").Options} [options]
   */
  constructor(url, offer, options = {}) {
    this.offer = offer;
    /** @type {Map<number, any>} */
    this.sessions = new Map();
    /** Resolves when the broker accepts the offer; rejects if it refuses it. */
    this.ready = new Promise((resolve, reject) => {
      this.accepted = resolve;
      this.refused = reject;
    });
    this.ready.catch(() => undefined);
    this.connection = new Connection(url, "env", options, {
      sessions: () => [...this.sessions].map(([sid, it]) => [sid, it.nonce, offer.address, it.learner]),
      welcome: () => this.sendOffer(),
      receive: (message) => this.receive(message),
    });
    this.timer = setInterval(() => this.report(), REPORT_MS);
  }

  /** Stop serving. */
  close() {
    clearInterval(this.timer);
    for (const sid of [...this.sessions.keys()]) this.end(sid);
    this.connection.close("env agent stopped");
  }

  async sendOffer() {
    const { address, id, observationSpace, actionSpace, capacity = 1 } = this.offer;
    const described = /** @type {any} */ (pack([id, observationSpace, actionSpace]));
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", described));
    const fields = [address, id, observationSpace, actionSpace, { id }, METADATA, capacity, digest, null];
    this.connection.send(encodeFrame(Kind.OFFER, fields));
  }

  /** Report the requests that are still executing (§7.8), or else that the agent lives (§4.3.2). */
  report() {
    let executing = false;
    for (const [sid, session] of this.sessions) {
      if (!session.since) continue;
      executing = true;
      const since = new Float((performance.now() - session.since) / 1000);
      this.connection.send(encodeFrame(Kind.PROGRESS, [since], sid, session.last + 1));
    }
    if (!executing && this.connection.known) this.connection.send(encodeFrame(Kind.PING, []));
  }

  /** @param {number} sid */
  end(sid) {
    const session = this.sessions.get(sid);
    this.sessions.delete(sid);
    session?.env?.close?.();
  }

  /** @param {import("./connection.js").Message} message */
  async receive(message) {
    switch (message.kind) {
      case Kind.OFFERED:
        return this.accepted?.(undefined);
      case Kind.GONE:
        return this.end(message.sid);
      case Kind.ERROR:
        if (message.sid === 0 && message.fields) {
          this.refused?.(new Error(message.fields[1]));
          this.close();
        }
        return;
      case Kind.OPEN:
        return this.connection.send(await this.open(message));
    }
    if (message.kind >= CONTROL) return;
    const reply = await this.answer(message);
    if (reply) this.connection.send(reply);
  }

  /** @param {import("./connection.js").Message} message */
  async open(message) {
    const { address, observationSpace, actionSpace, id, make } = this.offer;
    const about = [{ id }, METADATA, null, 0, { attributes: [] }, "", null, new Uint8Array()];
    const opened = reply(message, Kind.OPENED, [observationSpace, actionSpace, null, null, ...about]);
    if (this.sessions.has(message.sid)) return opened; // §7.4
    const [wanted, nonce, renderMode, envKwargs, count, , , learner] = message.fields;
    if (wanted !== address) return failed(message, "address-unknown", `Only ${address} is served here.`);
    const unwanted = Object.keys(envKwargs).join(", ");
    if (renderMode !== null || count || unwanted) {
      const text = "This env agent supports no render mode, no vector and no keyword arguments";
      return failed(message, "open-failed", unwanted ? `${text}: leave out ${unwanted}.` : `${text}.`);
    }
    /** @type {{env: any, nonce: any, learner: any, last: number, since: number, request: any, reply: any, inEpisode: boolean}} */
    const session = { env: null, nonce, learner, last: 0, since: 0, request: EMPTY, reply: EMPTY, inEpisode: false };
    this.sessions.set(message.sid, session);
    try {
      session.env = await make();
    } catch (error) {
      this.sessions.delete(message.sid);
      return failed(message, "open-failed", String(error), details(error));
    }
    return opened;
  }

  /** Apply the table of §7.2. @param {import("./connection.js").Message} message */
  async answer(message) {
    const { kind, sid, seq, frame } = message;
    const session = this.sessions.get(sid);
    if (!session) {
      if (kind === Kind.CLOSE) return reply(message, Kind.CLOSED, []);
      return failed(message, "session-lost", "This env agent does not know the session.");
    }
    const next = session.last + 1;
    if (seq > next) return failed(message, "expected", `Got request ${seq}; expected ${next}.`, { expected: next });
    if (seq < session.last) return undefined;
    if (seq === session.last) {
      if (same(frame, session.request)) return session.reply;
      return failed(message, "protocol", "A repeated request must have the same bytes.");
    }
    if (session.since) return undefined; // it is executing already
    if (!COUNTS.has(kind)) return failed(message, "protocol", "This is not a request.");
    if (kind === Kind.ACT && !session.inEpisode) return failed(message, "protocol", "ACT is not allowed before RESET.");
    session.since = performance.now();
    try {
      session.reply = await this.execute(session, message);
    } catch (error) {
      session.reply = failed(message, "environment-failed", String(error), details(error));
    }
    const limit = this.connection.maxMessage;
    if (session.reply.length > limit) {
      const text = `The reply has ${session.reply.length} bytes; the broker takes ${limit}.`;
      session.reply = failed(message, "too-large", text);
    }
    session.request = frame.slice();
    session.last = seq;
    session.since = 0;
    return session.reply;
  }

  /** @param {any} session @param {import("./connection.js").Message} message */
  async execute(session, message) {
    const { observationSpace, actionSpace } = this.offer;
    const { fields, kind, flags, tail } = message;
    if (fields?.length !== COUNTS.get(kind)) return failed(message, "protocol", `This message must have ${COUNTS.get(kind)} fields.`);
    switch (kind) {
      case Kind.RESET: {
        const result = await session.env.reset(fields[0], fields[1]);
        const { observation, info = {} } = isResult(result) ? result : { observation: result };
        const status = reply(message, Kind.STATUS, [toWire(observationSpace, observation), info]);
        session.inEpisode = true;
        return status;
      }
      case Kind.ACT: {
        const action = flags & COMPACT ? fromCompact(actionSpace, fields[0], tail) : fields[0];
        const { observation, reward, terminated = false, truncated = false, info = {} } = await session.env.step(action);
        const values = [rewardOf(reward), Boolean(terminated), Boolean(truncated), info];
        return reply(message, Kind.PERCEPT, [toWire(observationSpace, observation), ...values]);
      }
      case Kind.CLOSE:
        this.end(message.sid);
        return reply(message, Kind.CLOSED, []);
      case Kind.CALL:
        return failed(message, "attribute-denied", "This env agent exposes no attributes.");
      default:
        return failed(message, "environment-failed", "This environment cannot be rendered.", NO_RENDERING);
    }
  }
}

/** Return a reward as a float; a step without one is a mistake in the environment. @param {any} reward */
export function rewardOf(reward) {
  if (reward instanceof Float) return reward;
  if (!["number", "bigint", "boolean"].includes(typeof reward)) throw new TypeError(`The reward must be a number, not ${reward}.`);
  return new Float(Number(reward));
}

const EMPTY = new Uint8Array();
const METADATA = { render_modes: [] };
const NO_RENDERING = { type: "NotImplementedError", traceback: "" };

/** @param {any} result */
function isResult(result) {
  return Boolean(result) && Object.getPrototypeOf(result) === Object.prototype && "observation" in result;
}

/** @param {import("./connection.js").Message} message @param {number} kind @param {unknown[]} fields */
function reply({ sid, seq }, kind, fields) {
  return encodeFrame(kind, fields, sid, seq);
}

/** @param {import("./connection.js").Message} message @param {string} code @param {string} text @param {object} [about] */
function failed(message, code, text, about = {}) {
  return reply(message, Kind.ERROR, [code, text, about]);
}

/** @param {any} error */
function details(error) {
  return { type: error?.name ?? "Error", traceback: error?.stack ?? "" };
}

/** @param {Uint8Array} a @param {Uint8Array} b */
function same(a, b) {
  return a.length === b.length && a.every((byte, at) => byte === b[at]);
}
