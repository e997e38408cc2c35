/**
 * MessagePack, with control over what JavaScript does not distinguish: ints and floats.
 * A whole `number` is an int, any other a 64-bit float; `Float` is always a float.
 */

/** A number that is encoded as a float, even if it is whole. */
export class Float {
  /** @param {number} value */
  constructor(value) {
    this.value = value;
  }
}

/** An extension type whose meaning the reader does not know. */
export class Ext {
  /** @param {number} type @param {Uint8Array} data */
  constructor(type, data) {
    this.type = type;
    this.data = data;
  }
}

const MAX_DEPTH = 64;
const MAX_OTHER_KEYS = 4096; // that are neither text nor bytes: a peer may choose them with equal hashes
const utf8 = new TextEncoder();
const text = new TextDecoder("utf-8", { fatal: true });

/** Bytes that grow. */
class Writer {
  constructor() {
    this.bytes = new Uint8Array(256);
    this.view = new DataView(this.bytes.buffer);
    this.size = 0;
  }

  /** Make room for `count` bytes and return where they start. @param {number} count */
  room(count) {
    const start = this.size;
    this.size += count;
    if (this.size > this.bytes.length) {
      const grown = new Uint8Array(Math.max(this.size, 2 * this.bytes.length));
      grown.set(this.bytes);
      this.bytes = grown;
      this.view = new DataView(grown.buffer);
    }
    return start;
  }

  /** @param {number} value */
  u8(value) {
    const at = this.room(1);
    this.bytes[at] = value;
  }

  /** Write a length: in the first byte if it is short. @param {number} size @param {number[]} heads */
  head(size, [fixed, limit, one, two, four]) {
    if (size < limit) this.u8(fixed | size);
    else if (one && size < 0x100) this.u8(one), this.u8(size);
    else if (size < 0x10000) this.u8(two), this.put("setUint16", 2, size);
    else this.u8(four), this.put("setUint32", 4, size);
  }

  /** @param {"setUint16" | "setUint32" | "setBigUint64" | "setInt8" | "setInt16" | "setInt32" | "setBigInt64" | "setFloat64"} how @param {number} width @param {any} value */
  put(how, width, value) {
    const at = this.room(width); // which may replace the view
    this.view[how](at, /** @type {never} */ (value));
  }

  /** @param {Uint8Array} data */
  raw(data) {
    const at = this.room(data.length);
    this.bytes.set(data, at);
  }
}

/**
 * Encode a value. `extend` returns an `Ext` for an object of another kind, or undefined.
 * @param {unknown} value
 * @param {(value: object) => Ext | undefined} [extend]
 * @returns {Uint8Array}
 */
export function encode(value, extend = () => undefined) {
  const out = new Writer();
  write(out, value, extend);
  return out.bytes.slice(0, out.size);
}

/** @param {Writer} out @param {any} value @param {(value: object) => Ext | undefined} extend */
function write(out, value, extend) {
  if (value === null || value === undefined) out.u8(0xc0);
  else if (value === false) out.u8(0xc2);
  else if (value === true) out.u8(0xc3);
  else if (typeof value === "number") writeNumber(out, value);
  else if (typeof value === "bigint") writeInt(out, value);
  else if (typeof value === "string") {
    const data = utf8.encode(value);
    out.head(data.length, [0xa0, 32, 0xd9, 0xda, 0xdb]);
    out.raw(data);
  } else if (value instanceof Float) writeFloat(out, value.value);
  else if (value instanceof Ext) writeExt(out, value);
  else if (value instanceof Uint8Array) {
    out.head(value.length, [0, 0, 0xc4, 0xc5, 0xc6]);
    out.raw(value);
  } else if (Array.isArray(value)) {
    out.head(value.length, [0x90, 16, 0, 0xdc, 0xdd]);
    for (const item of value) write(out, item, extend);
  } else if (typeof value === "object") {
    const ext = extend(value);
    if (ext) return writeExt(out, ext);
    const entries = value instanceof Map ? [...value] : Object.entries(value);
    out.head(entries.length, [0x80, 16, 0, 0xde, 0xdf]);
    for (const [key, item] of entries) {
      write(out, key, extend);
      write(out, item, extend);
    }
  } else throw new TypeError(`A ${typeof value} cannot be sent.`);
}

/** @param {Writer} out @param {number} value */
function writeNumber(out, value) {
  if (Number.isSafeInteger(value) && !Object.is(value, -0)) writeInt(out, value);
  else writeFloat(out, value);
}

/** @param {Writer} out @param {number} value */
function writeFloat(out, value) {
  out.u8(0xcb);
  out.put("setFloat64", 8, value);
}

/** @param {Writer} out @param {number | bigint} value */
function writeInt(out, value) {
  if (value >= 0) {
    if (value < 0x80) out.u8(Number(value));
    else if (value < 0x100) out.u8(0xcc), out.u8(Number(value));
    else if (value < 0x10000) out.u8(0xcd), out.put("setUint16", 2, Number(value));
    else if (value < 0x100000000) out.u8(0xce), out.put("setUint32", 4, Number(value));
    else if (BigInt(value) < 1n << 64n) out.u8(0xcf), out.put("setBigUint64", 8, BigInt(value));
    else throw new RangeError(`${value} has more than 64 bits.`);
  } else if (value >= -0x20) out.u8(Number(value) & 0xff);
  else if (value >= -0x80) out.u8(0xd0), out.put("setInt8", 1, Number(value));
  else if (value >= -0x8000) out.u8(0xd1), out.put("setInt16", 2, Number(value));
  else if (value >= -0x80000000) out.u8(0xd2), out.put("setInt32", 4, Number(value));
  else if (BigInt(value) >= -(1n << 63n)) out.u8(0xd3), out.put("setBigInt64", 8, BigInt(value));
  else throw new RangeError(`${value} has more than 64 bits.`);
}

/** @param {Writer} out @param {Ext} ext */
function writeExt(out, { type, data }) {
  const fixed = [1, 2, 4, 8, 16].indexOf(data.length);
  if (fixed >= 0) out.u8(0xd4 + fixed);
  else out.head(data.length, [0, 0, 0xc7, 0xc8, 0xc9]);
  out.u8(type & 0xff);
  out.raw(data);
}

/**
 * Decode one value. Maps with text keys become objects without a prototype, others Maps. Ints beyond
 * 2^53 become bigints. `revive` turns an `Ext` into a value.
 * @param {Uint8Array} data
 * @param {(ext: Ext, depth: number) => unknown} [revive]
 * @param {number} [depth]
 */
export function decode(data, revive = (ext) => ext, depth = 0) {
  const reader = new Reader(data, revive);
  const value = reader.value(depth);
  if (reader.at !== data.length) throw new RangeError("There are bytes after the value.");
  return value;
}

class Reader {
  /** @param {Uint8Array} data @param {(ext: Ext, depth: number) => unknown} revive */
  constructor(data, revive) {
    this.data = data;
    this.view = new DataView(data.buffer, data.byteOffset, data.byteLength);
    this.revive = revive;
    this.at = 0;
  }

  /** Return where the next `count` bytes start. @param {number} count */
  take(count) {
    const start = this.at;
    if (start + count > this.data.length) throw new RangeError("The message is cut off.");
    this.at += count;
    return start;
  }

  /** @param {number} width bytes of an unsigned int */
  uint(width) {
    const at = this.take(width);
    if (width === 1) return this.view.getUint8(at);
    return width === 2 ? this.view.getUint16(at) : this.view.getUint32(at);
  }

  /** @param {number} size */
  bytes(size) {
    const at = this.take(size);
    return this.data.subarray(at, at + size);
  }

  /** @param {number} depth @returns {any} */
  value(depth) {
    if (depth > MAX_DEPTH) throw new RangeError(`More than ${MAX_DEPTH} levels are nested.`);
    const head = this.uint(1);
    if (head < 0x80) return head;
    if (head < 0x90) return this.map(head & 0x0f, depth);
    if (head < 0xa0) return this.list(head & 0x0f, depth);
    if (head < 0xc0) return text.decode(this.bytes(head & 0x1f));
    if (head >= 0xe0) return head - 0x100;
    switch (head) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: case 0xc5: case 0xc6: return this.bytes(this.uint(1 << (head - 0xc4)));
      case 0xc7: case 0xc8: case 0xc9: return this.ext(this.uint(1 << (head - 0xc7)), depth);
      case 0xca: return this.view.getFloat32(this.take(4));
      case 0xcb: return this.view.getFloat64(this.take(8));
      case 0xcc: case 0xcd: case 0xce: return this.uint(1 << (head - 0xcc));
      case 0xcf: return small(this.view.getBigUint64(this.take(8)));
      case 0xd0: return this.view.getInt8(this.take(1));
      case 0xd1: return this.view.getInt16(this.take(2));
      case 0xd2: return this.view.getInt32(this.take(4));
      case 0xd3: return small(this.view.getBigInt64(this.take(8)));
      case 0xd4: case 0xd5: case 0xd6: case 0xd7: case 0xd8: return this.ext(1 << (head - 0xd4), depth);
      case 0xd9: case 0xda: case 0xdb: return text.decode(this.bytes(this.uint(1 << (head - 0xd9))));
      case 0xdc: case 0xdd: return this.list(this.uint(2 << (head - 0xdc)), depth);
      case 0xde: case 0xdf: return this.map(this.uint(2 << (head - 0xde)), depth);
      default: throw new RangeError(`The byte ${head} does not start a MessagePack value.`);
    }
  }

  /** @param {number} size @param {number} depth */
  list(size, depth) {
    if (size > this.data.length - this.at) throw new RangeError("The message is cut off.");
    const items = [];
    for (let i = 0; i < size; i++) items.push(this.value(depth + 1));
    return items;
  }

  /** @param {number} size @param {number} depth */
  map(size, depth) {
    if (2 * size > this.data.length - this.at) throw new RangeError("The message is cut off.");
    const entries = new Map();
    let others = 0;
    let texts = 0;
    for (let i = 0; i < size; i++) {
      const key = this.value(depth + 1);
      if (typeof key === "string") texts++;
      else if (!(key instanceof Uint8Array) && ++others > MAX_OTHER_KEYS) {
        throw new RangeError(`A map has at most ${MAX_OTHER_KEYS} keys that are neither text nor bytes.`);
      }
      entries.set(key, this.value(depth + 1));
    }
    if (texts < size) return entries;
    return Object.assign(Object.create(null), Object.fromEntries(entries));
  }

  /** @param {number} size @param {number} depth */
  ext(size, depth) {
    const type = this.view.getInt8(this.take(1));
    return this.revive(new Ext(type, this.bytes(size)), depth + 1);
  }
}

/** @param {bigint} value */
function small(value) {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}
