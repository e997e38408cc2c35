import assert from "node:assert/strict";
import { test } from "node:test";

import { Kind, decodeFrame, encodeFrame } from "../src/connection.js";
import { EnvAgent, Learner } from "../src/index.js";
import { discrete } from "../src/spaces.js";

/** A socket whose other side is the test. */
class Socket {
  OPEN = 1;
  readyState = 1;
  sent = [];

  constructor() {
    Socket.last = this;
    queueMicrotask(() => this.onopen());
  }

  send(frame) {
    this.sent.push(decodeFrame(frame));
  }

  close() {}

  /** Let the client receive these bytes or this text, and all that follows from it. */
  async give(data) {
    this.onmessage({ data: data instanceof Uint8Array ? data.slice().buffer : data });
    for (let i = 0; i < 20; i++) await Promise.resolve();
  }
}

const WELCOME = encodeFrame(Kind.WELCOME, []);
const OPENED = [discrete(2), discrete(2), null, null, {}, {}, null, 0, {}];

/** Return the OPENs that a client has sent. */
function opens(socket) {
  return socket.sent.filter(({ kind }) => kind === Kind.OPEN);
}

/** Return a client's socket after WELCOME, and how many messages it has complained about. */
async function connected(t, make) {
  const warnings = t.mock.method(console, "warn", () => undefined).mock;
  const client = make({ WebSocket: Socket });
  t.after(() => client.close());
  await Promise.resolve();
  await Socket.last.give(WELCOME);
  return { client, socket: Socket.last, warnings };
}

test("a text and frames that make no sense do not end a learner", async (t) => {
  const { client, socket, warnings } = await connected(t, (options) => new Learner("ws://x", options));
  const opening = client.open("cart");
  const { seq } = opens(socket)[0];
  await socket.give("4000000000"); // not the length of an array
  await socket.give(new Uint8Array(5));
  for (const fields of [["later", 10n ** 18n], ["later", null], ["later", {}], []]) {
    await socket.give(encodeFrame(Kind.BUSY, fields, 0, seq));
  }
  await socket.give(encodeFrame(Kind.ERROR, ["protocol", { text: [] }, 5], 0, seq));
  assert.ok(warnings.callCount() > 0);
  await socket.give(encodeFrame(Kind.OPENED, OPENED, 7, seq));
  const session = await opening;
  const reset = session.reset();
  await socket.give(encodeFrame(Kind.PERCEPT, [1, 1, false, false, {}], 7, 1));
  await assert.rejects(reset, /kind 4 instead of 2/);
});

test("an env agent cannot guess the number of an OPEN that it did not get", async (t) => {
  const { client, socket } = await connected(t, (options) => new Learner("ws://x", options));
  const seqs = [];
  for (let sid = 1; sid <= 64; sid++) {
    const opening = client.open("cart");
    const { seq } = opens(socket).at(-1);
    for (const guess of [1, sid, ...seqs.slice(-1).flatMap((last) => [last - 1, last, last + 1])]) {
      await socket.give(encodeFrame(Kind.OPENED, OPENED, 1000, guess));
      await socket.give(encodeFrame(Kind.ERROR, ["denied", "no", {}], 1000, guess));
    }
    await socket.give(encodeFrame(Kind.OPENED, OPENED, sid, seq));
    assert.equal((await opening).sid, sid);
    assert.ok(Number.isSafeInteger(seq) && seq >= 2 ** 40);
    seqs.push(seq);
  }
  assert.ok(Math.max(...seqs) > 2 ** 51 && Math.min(...seqs) < 2 ** 51);
});

test("a repeated OPEN is answered under its own number", async (t) => {
  const offer = { address: "a", id: "A-v0", observationSpace: discrete(2), actionSpace: discrete(2), make: () => ({}) };
  const { socket } = await connected(t, (options) => new EnvAgent("ws://x", offer, options));
  for (const seq of [5, 5, 9]) await socket.give(encodeFrame(Kind.OPEN, ["a", null, null, {}, 0, "", false, ""], 9, seq));
  const answers = socket.sent.filter(({ kind }) => kind === Kind.OPENED);
  assert.deepEqual(answers.map(({ sid, seq }) => [sid, seq]), [[9, 5], [9, 5], [9, 9]]);
});

test("an OPEN that makes no sense does not end an env agent", async (t) => {
  const offer = { address: "a", id: "A-v0", observationSpace: discrete(2), actionSpace: discrete(2), make: () => ({}) };
  const { socket, warnings } = await connected(t, (options) => new EnvAgent("ws://x", offer, options));
  await socket.give(encodeFrame(Kind.OPEN, ["a", null, null, null, 0, "", false, ""], 8, 1));
  assert.equal(warnings.callCount(), 1);
  await socket.give(encodeFrame(Kind.OPEN, ["a", null, null, {}, 0, "", false, ""], 9, 1));
  assert.ok(socket.sent.some(({ kind, sid }) => kind === Kind.OPENED && sid === 9));
});
