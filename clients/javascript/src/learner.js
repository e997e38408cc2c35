/** A learner: it opens sessions and steps their environments (docs/protocol.md §7). */

import { COMPACT, Connection, Kind, encodeFrame, randomBytes } from "./connection.js";
import { fromCompact, toWire } from "./spaces.js";

const RESEND_MS = 1000;
const RESEND_MAX_MS = 15000;

/** An error that the broker or the env agent has answered. `code` is one of §12. */
export class GymwireError extends Error {
  /** @param {string} code @param {string} text @param {any} [details] */
  constructor(code, text, details = {}) {
    super(text);
    this.name = "GymwireError";
    this.code = code;
    this.details = details;
  }
}

/** A connection to a broker, and the sessions on it. */
export class Learner {
  /**
   * @param {string} url of a gateway, such as "ws://127.0.0.1:8080/ws"
   * @param {import("./connection.js").Options} [options]
   */
  constructor(url, options = {}) {
    /** @type {Map<number, Session>} */
    this.sessions = new Map();
    /** @type {Map<number, Request>} those of the broker itself, by number */
    this.requests = new Map();
    this.connection = new Connection(url, "learner", options, {
      sessions: () => [],
      welcome: () => this.welcome(),
      receive: (message) => this.receive(message),
    });
  }

  /**
   * Open a session at an address.
   * @param {string} address
   * @param {{envKwargs?: object, renderMode?: string | null}} [options]
   * @returns {Promise<Session>}
   */
  async open(address, { envKwargs = {}, renderMode = null } = {}) {
    const nonce = randomBytes(16);
    const seq = randomSeq(); // or another env agent could answer
    const fields = [address, nonce, renderMode, envKwargs, 0, "", false, "", new Uint8Array()];
    const request = new Request(this.connection, encodeFrame(Kind.OPEN, fields, 0, seq));
    this.requests.set(seq, request); // the reply has another sid: it matches by its number alone
    try {
      const message = await request.reply;
      const session = new Session(this, message, nonce);
      this.sessions.set(session.sid, session);
      return session;
    } finally {
      this.requests.delete(seq);
    }
  }

  /** Leave the broker, which ends all sessions. */
  close() {
    for (const session of this.sessions.values()) session.lose("the learner has left");
    for (const request of this.requests.values()) request.fail(new GymwireError("closed", "The learner has left."));
    this.connection.close("learner stopped");
  }

  welcome() {
    for (const session of this.sessions.values()) session.resume();
    for (const request of this.requests.values()) request.send();
  }

  /** @param {import("./connection.js").Message} message */
  receive(message) {
    const { kind, sid, seq, fields } = message;
    const session = this.sessions.get(sid);
    if (session) return session.receive(message);
    const request = this.requests.get(seq);
    if (!request) return;
    if (kind === Kind.OPENED) request.finish(message);
    else if (kind === Kind.ERROR) request.fail(new GymwireError(fields[0], fields[1], fields[2]));
    else if (kind === Kind.BUSY) request.retry(fields[1]);
  }
}

/** Return a request number that nobody can guess (§7.4): 2^40 and 52 random bits, below 2^53. */
function randomSeq() {
  const bytes = new DataView(randomBytes(8).buffer);
  return 2 ** 40 + (bytes.getUint32(0) % 2 ** 20) * 2 ** 32 + bytes.getUint32(4);
}

/** A request that is sent again until it is answered (§7.5). */
class Request {
  /** @param {Connection} connection @param {Uint8Array} frame */
  constructor(connection, frame) {
    this.connection = connection;
    this.frame = frame;
    this.wait = RESEND_MS;
    /** @type {Promise<any>} */
    this.reply = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
    this.send();
  }

  send() {
    clearTimeout(this.timer);
    if (this.connection.known) this.connection.send(this.frame);
    this.timer = setTimeout(() => this.send(), this.wait);
    this.wait = Math.min(2 * this.wait, RESEND_MAX_MS);
  }

  /** Send it again after a pause, because of BUSY. @param {number} seconds */
  retry(seconds) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.send(), 1000 * Math.min(Math.max(seconds, 0.05), 15));
  }

  /** @param {any} value */
  finish(value) {
    clearTimeout(this.timer);
    this.resolve?.(value);
  }

  /** @param {Error} error */
  fail(error) {
    clearTimeout(this.timer);
    this.reject?.(error);
  }
}

/** One use of one environment. */
export class Session {
  /** @param {Learner} learner @param {import("./connection.js").Message} opened @param {Uint8Array} nonce */
  constructor(learner, { sid, fields }, nonce) {
    this.learner = learner;
    this.sid = sid;
    this.nonce = nonce;
    this.observationSpace = fields[0];
    this.actionSpace = fields[1];
    this.spec = fields[4];
    this.metadata = fields[5];
    this.seq = 0;
    /** @type {Request | undefined} */
    this.request = undefined;
    this.expected = 0; // the kind of the reply
    this.lost = "";
  }

  /**
   * Start an episode.
   * @param {{seed?: number | bigint | null, options?: any}} [how]
   * @returns {Promise<{observation: any, info: any}>}
   */
  async reset({ seed = null, options = null } = {}) {
    const message = await this.ask(Kind.RESET, [seed, options]);
    return { observation: this.observed(message), info: message.fields[1] };
  }

  /**
   * Do one step.
   * @param {any} action a value of the action space
   * @returns {Promise<{observation: any, reward: any, terminated: any, truncated: any, info: any}>}
   */
  async step(action) {
    const message = await this.ask(Kind.ACT, [toWire(this.actionSpace, action)]);
    const [, reward, terminated, truncated, info] = message.fields;
    return { observation: this.observed(message), reward, terminated, truncated, info };
  }

  /** Render in the session's render mode. */
  async render() {
    return (await this.ask(Kind.RENDER, [])).fields[0];
  }

  /** Call an exposed method. @param {string} name @param {unknown[]} args @param {object} [kwargs] */
  async call(name, args = [], kwargs = {}) {
    return (await this.ask(Kind.CALL, ["call", name, args, kwargs])).fields[0];
  }

  /** End the session. */
  async close() {
    if (!this.lost) await this.ask(Kind.CLOSE, []);
    this.lost ||= "it was closed";
    this.learner.sessions.delete(this.sid);
  }

  /** @param {import("./connection.js").Message} message */
  observed({ fields, flags, tail }) {
    return flags & COMPACT ? fromCompact(this.observationSpace, fields[0], tail) : fields[0];
  }

  /** @param {number} kind @param {unknown[]} fields @returns {Promise<import("./connection.js").Message>} */
  async ask(kind, fields) {
    if (this.lost) throw new GymwireError("session-lost", `This session has ended: ${this.lost}.`);
    if (this.request) throw new Error("The previous call of this session has not ended yet.");
    const frame = encodeFrame(kind, fields, this.sid, ++this.seq);
    this.request = new Request(this.learner.connection, frame);
    this.expected = kind + 1; // each reply of the gym dialogue follows its request
    try {
      return await this.request.reply;
    } finally {
      this.request = undefined;
    }
  }

  /** Bind the session to the new connection (§7.10). */
  resume() {
    this.learner.connection.send(encodeFrame(Kind.RESUME, [this.nonce, true], this.sid, this.seq));
  }

  /** @param {string} why */
  lose(why) {
    this.lost = why;
    this.learner.sessions.delete(this.sid);
    this.request?.fail(new GymwireError("session-lost", `This session has ended: ${why}.`));
  }

  /** @param {import("./connection.js").Message} message */
  receive(message) {
    const { kind, seq, fields } = message;
    if (kind === Kind.GONE) return this.lose(fields[0]);
    if (kind === Kind.ERROR && fields[0] === "session-lost") return this.lose(fields[1]);
    if (kind === Kind.RESUMED) return this.request?.send();
    if (kind === Kind.BUSY && fields[0] === "hello") return this.resume();
    if (seq !== this.seq || !this.request) return; // §7.5: it belongs to no request
    if (kind === Kind.BUSY) this.request.retry(fields[1]);
    else if (kind === Kind.ERROR) this.request.fail(new GymwireError(fields[0], fields[1], fields[2]));
    else if (kind === this.expected) this.request.finish(message);
    else this.request.fail(new GymwireError("protocol", `The env agent has sent a message of kind ${kind} instead of ${this.expected}.`));
  }
}
