/** Spaces (docs/protocol.md §11): make their descriptions, and read and write their values. */

import { Float, NDArray, Tuple, inTail, scalar } from "./values.js";

/** @typedef {any[][]} Space a description: a list of nodes, parents before their children */

const ARRAYS = new Map(
  /** @type {[string, any][]} */ ([
    ["<f4", Float32Array], ["<f8", Float64Array], ["|u1", Uint8Array], ["|i1", Int8Array],
    ["<i2", Int16Array], ["<i4", Int32Array], ["<i8", BigInt64Array],
  ]),
);

/**
 * A Box with the same bounds for all numbers.
 * @param {number} low @param {number} high @param {number[]} shape @param {string} [dtype]
 * @returns {Space}
 */
export function box(low, high, shape, dtype = "<f4") {
  const bound = (/** @type {number} */ value) => (/f/.test(dtype) ? new Float(value) : value);
  return [["Box", dtype, shape, bound(low), bound(high)]];
}

/** Whole numbers from `start` to `start + n - 1`. @param {number} n @param {number} [start] @returns {Space} */
export function discrete(n, start = 0) {
  return [["Discrete", "<i8", n, start]];
}

/** @param {Record<string, Space>} parts @returns {Space} */
export function dict(parts) {
  return [["Dict", Object.keys(parts), false], ...Object.values(parts).flat()];
}

/** @param {Space[]} parts @returns {Space} */
export function tuple(parts) {
  return [["Tuple", parts.length], ...parts.flat()];
}

/**
 * Return a value of the space as it is sent, in the self-describing form.
 * @param {Space} space @param {any} value
 */
export function toWire(space, value) {
  return convert(space, value, {
    array: (dtype, shape, it) => {
      if (it instanceof NDArray) return it;
      const kind = ARRAYS.get(dtype);
      if (!kind) throw new TypeError(`Give the values of a space of ${dtype} as NDArray.`);
      const numbers = ArrayBuffer.isView(it) ? it : [it].flat(Infinity);
      return new NDArray(kind.from(numbers, kind === BigInt64Array ? BigInt : undefined), shape, dtype);
    },
    number: (dtype, it) => scalar(dtype, it),
    list: (items) => Tuple.from(items),
  });
}

/**
 * Return a value from its compact form (§11.8).
 * @param {Space} space @param {any} form @param {Uint8Array} tail
 */
export function fromCompact(space, form, tail) {
  return convert(space, form, {
    array: (dtype, shape, it) =>
      NDArray.from(dtype, shape, typeof it === "number" ? inTail(tail, it, dtype, shape) : it),
    number: (_, it) => it,
    list: (items) => Tuple.from(items),
    ordered: true,
  });
}

/**
 * @typedef {object} Conversion
 * @property {(dtype: string, shape: number[], value: any) => any} array
 * @property {(dtype: string, value: any) => any} number
 * @property {(items: any[]) => any} list
 * @property {boolean} [ordered] whether the value of a Dict is a list in the order of its keys
 */

/** @param {Space} space @param {any} value @param {Conversion} how */
function convert(space, value, how) {
  const nodes = space[Symbol.iterator]();
  /** @type {(it: any) => any} */
  const one = (it) => {
    /** @type {any} */
    const node = nodes.next().value;
    switch (node[0]) {
      case "Box": return how.array(node[1], node[2], it);
      case "MultiDiscrete": return how.array(node[1], node[2], it);
      case "MultiBinary": return how.array("|i1", [node[1]].flat(), it);
      case "Discrete": return how.number(node[1], it);
      case "Text": return it;
      case "Tuple": return how.list(it.map(one));
      case "Dict": {
        const keys = /** @type {string[]} */ (node[1]);
        return Object.fromEntries(keys.map((key, i) => [key, one(how.ordered ? it[i] : it[key])]));
      }
      default: throw new TypeError(`The values of a ${node[0]} cannot be converted.`);
    }
  };
  return one(value);
}
