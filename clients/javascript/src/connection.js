/** A connection to a gateway (docs/protocol.md §3.12): frames, HELLO, and reconnecting. */

import { join, pack, unpack } from "./values.js";

export const Kind = Object.freeze({
  RESET: 1, STATUS: 2, ACT: 3, PERCEPT: 4, CLOSE: 5, CLOSED: 6, RENDER: 7, FRAME: 8, CALL: 9,
  RESULT: 10, ERROR: 11, OPEN: 16, OPENED: 17, RESUME: 18, RESUMED: 19, PROGRESS: 20, GONE: 21,
  BUSY: 22, HELLO: 32, WELCOME: 33, OFFER: 34, OFFERED: 35, WITHDRAW: 36, FIND: 37, FOUND: 38,
  PING: 39, PONG: 40, BYE: 41,
});
export const COMPACT = 1;

export const CONTROL = 16; // the first kind that is not of the gym dialogue

const MAGIC = 0xe7;
const VERSION = 1;
const HEADER = 24;
const ALIGNMENT = 16;
const MAX_MESSAGE = 64 * 1024 * 1024;
const RECONNECT_MS = [100, 200, 500, 1000, 2000];
const HELLO_AGAIN_MS = 1000;

/**
 * @typedef {object} Message
 * @property {number} kind
 * @property {number} flags
 * @property {number} sid
 * @property {number} seq
 * @property {any[]} fields
 * @property {Uint8Array} tail
 * @property {Uint8Array} frame
 */

/** Encode a message as a frame (§3.7). @param {number} kind @param {unknown[]} fields @returns {Uint8Array} */
export function encodeFrame(kind, fields, sid = 0, seq = 0, flags = 0) {
  const head = pack(fields);
  const header = new Uint8Array(HEADER);
  const view = new DataView(header.buffer);
  header.set([MAGIC, VERSION, kind, flags]);
  view.setUint32(4, head.length, true);
  view.setBigUint64(8, BigInt(sid), true);
  view.setBigUint64(16, BigInt(seq), true);
  return join([header, head]);
}

/**
 * Decode a frame. Throws if its header is malformed; `fields` is undefined if only they are.
 * @param {Uint8Array} frame
 * @returns {Message}
 */
export function decodeFrame(frame) {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
  if (frame.length < HEADER || frame[0] !== MAGIC || frame[1] !== VERSION) {
    throw new RangeError("This is not a gymwire frame of version 1.");
  }
  const end = HEADER + view.getUint32(4, true);
  if (end > frame.length) throw new RangeError("The message is cut off.");
  const tail = frame.subarray(ALIGNMENT * Math.ceil(end / ALIGNMENT));
  let fields;
  try {
    fields = unpack(frame.subarray(HEADER, end), tail);
  } catch {
    fields = undefined;
  }
  if (!Array.isArray(fields)) fields = undefined;
  const sid = Number(view.getBigUint64(8, true)); // below 2^53 (§13.3)
  return { kind: frame[2], flags: frame[3], sid, seq: Number(view.getBigUint64(16, true)), fields: /** @type {any} */ (fields), tail, frame };
}

/** Return random bytes. @param {number} count */
export function randomBytes(count) {
  return crypto.getRandomValues(new Uint8Array(count));
}

/**
 * @typedef {object} Options
 * @property {string} [token] the token of the gateway
 * @property {string} [host] a name of this computer, for people
 * @property {typeof globalThis.WebSocket} [WebSocket] the class of sockets, if it is not global
 */

/** A connection that reconnects when it is lost. */
export class Connection {
  /**
   * @param {string} url such as "ws://127.0.0.1:8080/ws"
   * @param {string} role "env" or "learner"
   * @param {Options} options
   * @param {object} owner
   * @param {() => unknown[]} owner.sessions the rows of HELLO
   * @param {() => void} owner.welcome called when the broker has answered HELLO
   * @param {(message: Message) => void | Promise<void>} owner.receive called with each other message
   */
  constructor(url, role, options, owner) {
    this.url = url;
    this.role = role;
    this.options = options;
    this.owner = owner;
    this.agent = randomBytes(16);
    this.known = false; // whether the broker has answered HELLO on this connection
    this.maxMessage = MAX_MESSAGE; // bytes of a frame that the broker takes (§3.6)
    this.closed = false;
    this.attempt = 0;
    /** @type {WebSocket | undefined} */
    this.socket = undefined;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    this.dial();
  }

  dial() {
    const Socket = this.options.WebSocket ?? globalThis.WebSocket;
    if (!Socket) throw new Error("There is no WebSocket. Use Node 22, or Node 20 with --experimental-websocket.");
    const { token } = this.options;
    const socket = new Socket(this.url, token ? ["gymwire", `gymwire.token.${token}`] : ["gymwire"]);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.hello();
    socket.onmessage = ({ data }) => data instanceof ArrayBuffer && this.receive(new Uint8Array(data));
    socket.onclose = () => this.lost(socket);
    socket.onerror = () => undefined; // onclose follows
    this.socket = socket;
  }

  /** @param {WebSocket} socket */
  lost(socket) {
    if (this.closed || socket !== this.socket) return;
    this.known = false;
    const pause = RECONNECT_MS[Math.min(this.attempt++, RECONNECT_MS.length - 1)];
    setTimeout(() => this.closed || this.dial(), pause);
  }

  /** Send HELLO, and again each second until it is answered (§4.3.2). */
  hello() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.known || this.hello(), HELLO_AGAIN_MS);
    const { host = "javascript" } = this.options;
    this.send(encodeFrame(Kind.HELLO, [this.role, this.agent, "gymwire-js 0.2.0", host, this.owner.sessions()]));
  }

  /** Send a frame, or drop it if there is no connection (§3.5). @param {Uint8Array} frame */
  send(frame) {
    if (this.socket && this.socket.readyState === this.socket.OPEN) this.socket.send(/** @type {any} */ (frame));
  }

  /** @param {Uint8Array} frame */
  receive(frame) {
    let message;
    try {
      message = decodeFrame(frame);
    } catch {
      return; // §13.1: what is invalid is dropped
    }
    // An env agent answers a request that it cannot decode (§7.3).
    if (!message.fields && (this.role !== "env" || message.kind >= CONTROL)) return;
    if (message.kind === Kind.WELCOME) {
      this.known = true;
      this.attempt = 0;
      this.maxMessage = Number(message.fields[3]);
      this.owner.welcome();
    } else if (message.kind === Kind.BUSY && message.sid === 0 && message.fields[0] === "hello") {
      this.known = false;
      this.hello();
    } else this.pass(message);
  }

  /** Pass a message to the owner. One that makes no sense is dropped, and ends nothing else (§13.1). @param {Message} message */
  async pass(message) {
    try {
      await this.owner.receive(message);
    } catch (error) {
      console.warn("gymwire: a message was dropped:", error);
    }
  }

  /** Leave the broker and close the connection. @param {string} reason */
  close(reason) {
    this.send(encodeFrame(Kind.BYE, [reason]));
    this.closed = true;
    clearTimeout(this.timer);
    this.socket?.close();
  }
}
