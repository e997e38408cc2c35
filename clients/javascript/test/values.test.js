import assert from "node:assert/strict";
import { test } from "node:test";

import { rewardOf } from "../src/env_agent.js";
import { decode, encode } from "../src/msgpack.js";
import { box, dict, discrete, fromCompact, toWire, tuple } from "../src/spaces.js";
import { Float, NDArray, Tuple, pack, scalar, unpack } from "../src/values.js";

const NONE = new Uint8Array();
const hex = (bytes) => Buffer.from(bytes).toString("hex");
const again = (value) => unpack(pack(value), NONE);

test("each int has its shortest form", () => {
  const forms = [
    [0, "00"], [127, "7f"], [128, "cc80"], [255, "ccff"], [256, "cd0100"], [65535, "cdffff"],
    [65536, "ce00010000"], [2 ** 32 - 1, "ceffffffff"], [2 ** 32, "cf0000000100000000"],
    [2n ** 64n - 1n, "cfffffffffffffffff"], [-1, "ff"], [-32, "e0"], [-33, "d0df"], [-128, "d080"],
    [-129, "d1ff7f"], [-32768, "d18000"], [-32769, "d2ffff7fff"], [-(2 ** 31), "d280000000"],
    [-(2 ** 31) - 1, "d3ffffffff7fffffff"], [-(2n ** 63n), "d38000000000000000"],
  ];
  for (const [value, form] of forms) {
    assert.equal(hex(encode(value)), form);
    assert.equal(BigInt(decode(encode(value))), BigInt(value));
  }
  assert.throws(() => encode(2n ** 64n));
});

test("a whole number is an int, and a float only if it is marked", () => {
  assert.equal(hex(encode(1)), "01");
  assert.equal(hex(encode(new Float(1))), "cb3ff0000000000000");
  assert.equal(hex(encode(1.5)), "cb3ff8000000000000");
  assert.equal(hex(encode(-0)), "cb8000000000000000");
  for (const value of [NaN, Infinity, -Infinity, 1e300, 2 ** 53]) assert.deepEqual(decode(encode(value)), value);
});

test("texts, bytes, lists and maps of any length return unchanged", () => {
  for (const size of [0, 1, 15, 16, 31, 32, 255, 256, 65535, 65536]) {
    assert.equal(decode(encode("x".repeat(size))).length, size);
    assert.equal(decode(encode(new Uint8Array(size))).length, size);
    assert.equal(decode(encode(Array(size).fill(1))).length, size);
    const map = new Map(Array.from({ length: size }, (_, i) => [new Uint8Array([i]), i]));
    if (size) assert.equal(decode(encode(map)).size, size);
  }
  assert.equal(decode(encode("ü€😀")), "ü€😀");
  assert.deepEqual({ ...decode(encode({ a: [null, true, false] })) }, { a: [null, true, false] });
});

test("a map cannot set the prototype of an object", () => {
  const map = decode(encode(new Map([["__proto__", 1], ["constructor", 2]])));
  assert.equal({}.constructor, Object);
  assert.equal(Object.getPrototypeOf(map), null);
});

test("every prefix of a message is refused", () => {
  const whole = encode({ a: [1, "text", new Uint8Array(3), 1.5], b: 2 ** 40 });
  for (let size = 0; size < whole.length; size++) assert.throws(() => decode(whole.subarray(0, size)));
  assert.throws(() => decode(new Uint8Array([...whole, 0])), /after the value/);
  assert.throws(() => decode(new Uint8Array([0xdd, 0xff, 0xff, 0xff, 0xff])), /cut off/);
  assert.throws(() => decode(new Uint8Array(1000).fill(0x91)), /nested/);
  assert.throws(() => decode(new Uint8Array([0xc1])));
});

test("arrays keep their types and shapes", () => {
  const arrays = [
    new NDArray(new Float32Array([1, 2, 3, 4]), [2, 2]), new NDArray(new Float64Array(0), [0, 3]),
    new NDArray(new BigInt64Array([-1n]), []), new NDArray(new Uint8Array([1, 0]), [2], "|b1"),
    new NDArray(new Uint8Array([7])),
  ];
  for (const array of arrays) assert.deepEqual(again([array])[0], array);
  assert.deepEqual(again([new Int16Array([5])])[0], new NDArray(new Int16Array([5])));
  assert.throws(() => new NDArray(new Float32Array(3), [2]));
  assert.equal(NDArray.from("<f4", [2 ** 18, 0], new Uint8Array(0)).data.length, 0);
  assert.throws(() => NDArray.from("<f4", [0, 2 ** 18 + 1], new Uint8Array(0)), /too large/);
  assert.deepEqual([...NDArray.from(">i2", [2], new Uint8Array([0, 1, 1, 0])).data], [1, 256]);
});

test("tuples and scalars return", () => {
  const value = again([Tuple.of(1, Tuple.of("a"), [2])])[0];
  assert.ok(value instanceof Tuple && value[1] instanceof Tuple && !(value[2] instanceof Tuple));
  for (const [dtype, number] of [["<i8", -5], ["|b1", true], ["<f4", 0.5], ["|u1", 200]]) {
    assert.equal(again([scalar(dtype, number)])[0], number);
  }
});

test("values of spaces are sent with the dtypes of the space", () => {
  const space = dict({ box: box(0, 1, [2]), pair: tuple([discrete(3), box(0, 255, [1, 2], "|u1")]) });
  assert.equal(hex(pack(box(-1, 1, [2]))), "9195a3426f78a33c66349102cbbff0000000000000cb3ff0000000000000");
  const sent = again([toWire(space, { box: [0.5, 1], pair: [2, [[1, 2]]] })])[0];
  assert.deepEqual(sent.box, new NDArray(new Float32Array([0.5, 1])));
  assert.equal(sent.pair[0], 2);
  assert.deepEqual(sent.pair[1], new NDArray(new Uint8Array([1, 2]), [1, 2]));
  const compact = [new Uint8Array([0, 0, 0, 63, 0, 0, 128, 63]), [2, new Uint8Array([1, 2])]];
  assert.deepEqual(fromCompact(space, compact, NONE), { box: sent.box, pair: Tuple.of(2, sent.pair[1]) });
});

/** Return an extension value. */
const ext = (type, data) => {
  const head = new Uint8Array([0xc9, 0, 0, 0, 0, type]);
  new DataView(head.buffer).setUint32(1, data.length);
  return new Uint8Array([...head, ...data]);
};

test("a long int is refused before it takes quadratic time", () => {
  assert.equal(unpack(ext(3, new Uint8Array(256).fill(255)), NONE), -1n);
  assert.throws(() => unpack(ext(3, new Uint8Array(257)), NONE), /at most 256 bytes/);
});

test("a tuple cannot claim a length", () => {
  assert.throws(() => unpack(ext(4, encode({ length: 2 ** 32 - 1 })), NONE), /A tuple is a list/);
  assert.throws(() => unpack(ext(4, encode(5)), NONE), /A tuple is a list/);
});

test("a map may have few keys whose hashes a peer can choose", () => {
  const map = (size) => new Map(Array.from({ length: size }, (_, i) => [i, i]));
  assert.equal(decode(encode(map(4096))).size, 4096);
  assert.throws(() => decode(encode(map(4097))), /at most 4096 keys/);
});

test("a reward is a number", () => {
  assert.deepEqual([1, 2n, true, new Float(0.5)].map((one) => rewardOf(one).value), [1, 2, 1, 0.5]);
  assert.ok(Number.isNaN(rewardOf(NaN).value));
  for (const wrong of ["x", undefined, null, [1]]) assert.throws(() => rewardOf(wrong), /reward must be a number/);
});
