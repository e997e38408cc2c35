/** The values of docs/protocol.md §10: what MessagePack has, and NumPy's arrays and scalars. */

import { Ext, Float, decode, encode } from "./msgpack.js";

export { Float };

/** A Python tuple. */
export class Tuple extends Array {}

const MAX_INT = 256; // bytes: reading one takes time quadratic in them

const MAX_EMPTY = 2 ** 18; // rows of an array without numbers: they take no bytes, but a loop takes time

/** @typedef {Int8Array | Uint8Array | Int16Array | Uint16Array | Int32Array | Uint32Array | BigInt64Array | BigUint64Array | Float32Array | Float64Array} Typed */

const NATIVE = new Map(
  /** @type {[string, any][]} */ ([
    ["|b1", Uint8Array], ["|i1", Int8Array], ["|u1", Uint8Array],
    ["<i2", Int16Array], ["<u2", Uint16Array], ["<i4", Int32Array], ["<u4", Uint32Array],
    ["<i8", BigInt64Array], ["<u8", BigUint64Array], ["<f4", Float32Array], ["<f8", Float64Array],
    ["<f2", Uint16Array],
  ]),
);
const DTYPES = new Map([...NATIVE].slice(1, -1).map(([dtype, kind]) => [kind, dtype]));

/** An array of numbers with a shape, in C order. */
export class NDArray {
  /**
   * @param {Typed} data the numbers; bigints for 64-bit integers, 0 and 1 for bools, and the raw
   *   bits for float16
   * @param {number[]} [shape]
   * @param {string} [dtype] NumPy's name of the type, such as "<f4"
   */
  constructor(data, shape = [data.length], dtype = DTYPES.get(data.constructor)) {
    if (!dtype || !NATIVE.has(dtype)) throw new TypeError(`${dtype} is not a supported type of arrays.`);
    if (product(shape) !== data.length) throw new RangeError(`[${shape}] is not the shape of ${data.length} numbers.`);
    if (!data.length && product(shape.filter(Boolean)) > MAX_EMPTY) {
      throw new RangeError(`[${shape}] is too large for an array without numbers.`);
    }
    this.data = data;
    this.shape = shape;
    this.dtype = dtype;
  }

  /** The raw bytes. */
  get bytes() {
    return new Uint8Array(this.data.buffer, this.data.byteOffset, this.data.byteLength);
  }

  /**
   * Return an array from raw bytes, which are copied.
   * @param {string} dtype @param {number[]} shape @param {Uint8Array} bytes
   */
  static from(dtype, shape, bytes) {
    const little = dtype.replace(/^>/, "<");
    const kind = NATIVE.get(little);
    if (!kind) throw new TypeError(`Arrays of ${dtype} cannot be read here.`);
    const width = kind.BYTES_PER_ELEMENT;
    if (!Array.isArray(shape) || product(shape) * width !== bytes.length) {
      throw new RangeError(`[${shape}] is not the shape of ${bytes.length} bytes of ${dtype}.`);
    }
    const copy = bytes.slice();
    if (dtype[0] === ">") {
      for (let at = 0; at < copy.length; at += width) copy.subarray(at, at + width).reverse();
    }
    return new NDArray(new kind(copy.buffer), shape, little);
  }
}

/** @param {number[]} shape */
function product(shape) {
  return shape.reduce((count, size) => count * size, 1);
}

/**
 * Return the numpy scalar of this dtype.
 * @param {string} dtype @param {number | bigint | boolean} value
 */
export function scalar(dtype, value) {
  const kind = NATIVE.get(dtype);
  const data = new kind([/8/.test(dtype) && /[iu]/.test(dtype) ? BigInt(value) : Number(value)]);
  return new Ext(2, join([utf8.encode(`${dtype}\0`), new Uint8Array(data.buffer)]));
}

const utf8 = new TextEncoder();
const ascii = new TextDecoder();

/** @param {Uint8Array[]} parts */
export function join(parts) {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** @param {object} value @returns {Ext | undefined} */
function extend(value) {
  if (value instanceof NDArray) return new Ext(1, encode([value.dtype, value.shape, value.bytes]));
  if (ArrayBuffer.isView(value)) return extend(new NDArray(/** @type {Typed} */ (value)));
  return undefined;
}

/** Encode the fields of a message. @param {unknown[]} fields */
export function pack(fields) {
  return encode(tuples(fields), extend);
}

/** Replace tuples, which are arrays to JavaScript. @param {any} value @returns {any} */
function tuples(value) {
  if (value instanceof Tuple) return new Ext(4, encode([...value].map(tuples), extend));
  if (Array.isArray(value)) return value.map(tuples);
  if (value instanceof Map) return new Map([...value].map(([key, item]) => [key, tuples(item)]));
  if (value && Object.getPrototypeOf(value) === Object.prototype) {
    return new Map(Object.entries(value).map(([key, item]) => [key, tuples(item)]));
  }
  return value;
}

/**
 * Decode the fields of a message. `tail`: the bytes after the head, aligned.
 * @param {Uint8Array} head @param {Uint8Array} tail
 */
export function unpack(head, tail) {
  return decode(head, reviver(tail));
}

/** @param {Uint8Array} tail @returns {(ext: Ext, depth: number) => any} */
function reviver(tail) {
  const revive = (/** @type {Ext} */ { type, data }, /** @type {number} */ depth) => {
    switch (type) {
      case 1: {
        const [dtype, shape, body] = decode(data, undefined, depth);
        return NDArray.from(dtype, shape, typeof body === "number" ? inTail(tail, body, dtype, shape) : body);
      }
      case 2: {
        const end = data.indexOf(0);
        const dtype = ascii.decode(data.subarray(0, end));
        const raw = data.subarray(end + 1);
        if (dtype === "U") return ascii.decode(raw);
        if (dtype === "S") return raw;
        const [value] = NDArray.from(dtype, [1], raw).data;
        if (dtype === "|b1") return Boolean(value);
        const number = Number(value);
        return typeof value === "bigint" && !Number.isSafeInteger(number) ? value : number;
      }
      case 3: {
        if (data.length > MAX_INT) throw new RangeError(`An int has at most ${MAX_INT} bytes.`);
        let value = 0n;
        for (let at = data.length - 1; at >= 0; at--) value = (value << 8n) | BigInt(data[at]);
        return BigInt.asIntN(8 * data.length, value);
      }
      case 4: {
        const items = decode(data, revive, depth);
        if (!Array.isArray(items)) throw new TypeError("A tuple is a list."); // not {length: 2 ** 32}
        return Tuple.from(items);
      }
      case 7:
        return decode(data, revive, depth);
      default:
        return new Ext(type, data);
    }
  };
  return revive;
}

/**
 * Return the bytes of an array in the tail.
 * @param {Uint8Array} tail @param {number} offset @param {string} dtype @param {number[]} shape
 */
export function inTail(tail, offset, dtype, shape) {
  const kind = NATIVE.get(dtype.replace(/^>/, "<"));
  const size = product(shape) * (kind ? kind.BYTES_PER_ELEMENT : 1);
  if (offset + size > tail.length) throw new RangeError("An array is outside of the message.");
  return tail.subarray(offset, offset + size);
}
