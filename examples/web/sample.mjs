// The demo's sentence pairs and the trained embeddings of their words, out of the package's `.npz`.

import { unzipSync } from "fflate";

// A `.npy` file: magic, version, the header's length, a Python dict in text, then the numbers.
function readNpy(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const start = 10 + view.getUint16(8, true);
  const header = new TextDecoder("latin1").decode(bytes.subarray(10, start));
  const [, descr] = /'descr': '([^']+)'/.exec(header);
  const shape = /'shape': \(([^)]*)\)/.exec(header)[1].split(",").filter((size) => size.trim()).map(Number);
  if (header.includes("'fortran_order': True")) throw new Error("an array in Fortran order");
  const data = bytes.slice(start).buffer;
  if (descr === "<f4") return { shape, data: new Float32Array(data) };
  if (descr === "<i4") return { shape, data: new Int32Array(data) };
  if (descr.startsWith("<U")) return { shape, data: readText(new Uint32Array(data), Number(descr.slice(2))) };
  throw new Error(`an array of type ${descr}`);
}

// NumPy's text: so many code points each, filled up with zeros.
function readText(codes, length) {
  return Array.from({ length: codes.length / length }, (_, i) =>
    String.fromCodePoint(...codes.subarray(i * length, (i + 1) * length).filter((code) => code !== 0)),
  );
}

/**
 * Sentence pairs at `url`: [{ query, value }], each side { text, tokens, embeddings } with float32
 * embeddings [tokens, dim], padding left out.
 */
export async function loadSample(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${new URL(url).pathname}: the server answers ${response.status}`);
  const files = unzipSync(new Uint8Array(await response.arrayBuffer()));
  const array = (name) => readNpy(files[`${name}.npy`]);
  const tokens = array("tokens").data;
  const { data: table, shape: [, dim] } = array("embeddings");

  function side(name) {
    const { data: ids, shape: [pairs, length] } = array(`${name}_ids`);
    const texts = array(`${name}_text`).data;
    return Array.from({ length: pairs }, (_, pair) => {
      const real = Array.from(ids.subarray(pair * length, (pair + 1) * length)).filter((id) => id !== 0);
      const embeddings = new Float32Array(real.length * dim);
      real.forEach((id, i) => embeddings.set(table.subarray(id * dim, (id + 1) * dim), i * dim));
      return { text: texts[pair], tokens: real.map((id) => tokens[id]), embeddings };
    });
  }

  const values = side("value");
  return { dim, pairs: side("query").map((query, i) => ({ query, value: values[i] })) };
}
