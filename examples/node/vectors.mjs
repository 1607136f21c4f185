// Test vectors: `test_data_set_K/*.pb` files as tensors, and how far a runtime's results are from them.
// Nothing here knows Node or a browser: the page in examples/web uses this file too.

import { PbfReader } from "pbf";

// TensorProto.DataType in onnx.proto, the types that attention files have.
const TYPES = {
  1: ["float32", Float32Array],
  9: ["bool", Uint8Array],
  10: ["float16", Uint16Array],
  11: ["float64", Float64Array],
};

// The fields of message TensorProto in onnx.proto.
const DIMS = 1, DATA_TYPE = 2, NAME = 8, RAW_DATA = 9;

function readField(field, tensor, reader) {
  if (field === DIMS) reader.readPackedVarint(tensor.dims);
  else if (field === DATA_TYPE) tensor.dataType = reader.readVarint();
  else if (field === NAME) tensor.name = reader.readString();
  else if (field === RAW_DATA) tensor.raw = reader.readBytes();
}

/** A `.pb` file's bytes as { name, type, dims, data }: what `ort.Tensor` takes, and the input's name. */
export function readTensor(bytes) {
  const found = new PbfReader(bytes).readFields(readField, { name: "", dims: [], dataType: 0, raw: null });
  if (!(found.dataType in TYPES)) throw new Error(`${found.name}: data type ${found.dataType} is not one of an attention file`);
  const [type, ArrayType] = TYPES[found.dataType];
  const count = found.dims.reduce((product, dim) => product * dim, 1);
  // A copy, since typed arrays want aligned bytes. An empty tensor has no raw_data.
  const raw = new Uint8Array(found.raw ?? 0);
  if (raw.byteLength !== count * ArrayType.BYTES_PER_ELEMENT) {
    throw new Error(`${found.name}: ${raw.byteLength} bytes of raw_data for ${type}[${found.dims}]`);
  }
  return { name: found.name, type, dims: found.dims, data: new ArrayType(raw.buffer) };
}

/** The numbers of a tensor; float16 arrives as bits where JavaScript has no Float16Array. */
export function numbers({ type, data }) {
  return type === "float16" && data instanceof Uint16Array ? Float64Array.from(data, halfToNumber) : data;
}

// IEEE 754 binary16: 1 sign bit, 5 of exponent, 10 of fraction.
function halfToNumber(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/**
 * How far `actual` is from `expected`: { largest, ok }, ok where every number is within
 * atol + rtol * |expected|. A result of another shape is an error.
 */
export function compare(actual, expected, { atol, rtol }) {
  if (`${actual.dims}` !== `${expected.dims}`) {
    throw new Error(`${expected.name} is [${actual.dims}], expected [${expected.dims}]`);
  }
  const got = numbers(actual);
  const wanted = numbers(expected);
  let largest = 0;
  let ok = true;
  for (let i = 0; i < wanted.length; i += 1) {
    const error = Object.is(got[i], wanted[i]) ? 0 : Math.abs(got[i] - wanted[i]);
    // Written so that NaN, which is larger than nothing, fails.
    if (!(error <= largest)) largest = error;
    if (!(error <= atol + rtol * Math.abs(wanted[i]))) ok = false;
  }
  return { largest, ok };
}

/** The file has this input as an optional one: JavaScript's runtimes do not list it, nor take it. */
export class OptionalInput extends Error {
  constructor(name) {
    super(`the runtime takes no optional input (${name}): export with inputs="required"`);
  }
}

/**
 * Runs data sets, each { name, inputs, outputs } with `.pb` files as bytes:
 * { sets: [{ name, largest, ok }], largest, ok }. Throws OptionalInput, or the runtime's error.
 */
export async function runDataSets(ort, session, dataSets, tolerance) {
  if (dataSets.length === 0) throw new Error("there is no test_data_set_K beside the model");
  const sets = [];
  for (const { name, inputs, outputs } of dataSets) {
    const feeds = {};
    for (const tensor of inputs.map(readTensor)) {
      // onnxruntime-node would drop a name that it does not list without a word.
      if (!session.inputNames.includes(tensor.name)) throw new OptionalInput(tensor.name);
      feeds[tensor.name] = new ort.Tensor(tensor.type, tensor.data, tensor.dims);
    }
    const results = await session.run(feeds);
    const compared = outputs.map(readTensor).map((wanted) => compare(results[wanted.name], wanted, tolerance));
    sets.push({ name, ...worst(compared) });
  }
  return { sets, ...worst(sets) };
}

function worst(compared) {
  return { largest: Math.max(...compared.map((one) => one.largest)), ok: compared.every((one) => one.ok) };
}

/**
 * One model's line of a report: { result, sets, largest, why } from a function that opens the model
 * and runs its data sets.
 */
export async function reportOf(check) {
  try {
    const { sets, largest, ok } = await check();
    return { result: ok ? "ok" : "error too large", sets: sets.length, largest };
  } catch (error) {
    const result = error instanceof OptionalInput ? "does not run here" : "failed";
    return { result, sets: 0, largest: null, why: oneLine(error) };
  }
}

/** Whether a report holds nothing but good results and explained ones. */
export function isFine(report) {
  const results = Object.values(report).map(({ result }) => result);
  return results.includes("ok") && results.every((result) => ["ok", "does not run here"].includes(result));
}

/** A runtime's error as one readable line, without the folders that the runtime was built in. */
export function oneLine(error) {
  return String(error?.message ?? error).replace(/\/\S+\/(?=[\w.]+:\d)/g, "").replace(/\s+/g, " ").trim();
}

/** An error as people write it: 2.4e-7, and 0 for none. */
export function scientific(number) {
  return number === 0 ? "0" : number.toExponential(1);
}
