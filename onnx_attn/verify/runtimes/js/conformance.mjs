// One task in one session, the same for every JavaScript build of ONNX Runtime: reads the test
// set's TensorProto files by itself and hands back the bytes of each output.

// onnx.proto: TensorProto.DataType, and the arrays that ONNX Runtime takes for each.
const TYPES = {
  1: { name: "float32", Store: Float32Array },
  6: { name: "int32", Store: Int32Array },
  7: { name: "int64", Store: BigInt64Array },
  9: { name: "bool", Store: Uint8Array },
  10: { name: "float16", Store: globalThis.Float16Array ?? Uint16Array },
  11: { name: "float64", Store: Float64Array },
};

/** A reader of serialized TensorProtos, made with protobufjs. */
export function tensorReader(protobuf, ort) {
  const { TensorProto } = protobuf.Root.fromJSON({
    nested: {
      TensorProto: {
        fields: {
          dims: { rule: "repeated", type: "int64", id: 1 },
          dataType: { type: "int32", id: 2 },
          name: { type: "string", id: 8 },
          rawData: { type: "bytes", id: 9 },
        },
      },
    },
  });
  return (bytes) => {
    const proto = TensorProto.toObject(TensorProto.decode(bytes), { longs: Number, arrays: true });
    const type = TYPES[proto.dataType];
    if (type === undefined) throw new Error(`${proto.name}: no reader for type ${proto.dataType}`);
    // A copy: raw_data starts anywhere in the file, typed arrays want their own alignment.
    const data = new type.Store(Uint8Array.from(proto.rawData ?? []).buffer);
    return [proto.name, new ort.Tensor(type.name, data, proto.dims)];
  };
}

/** Runs a task; `read` gives a file's bytes. Errors become the answer. */
export async function answer(ort, readTensor, read, options, task) {
  try {
    const session = await ort.InferenceSession.create(await read(task.model), options);
    const outputs = [];
    for (const feed of task.feeds) {
      const tensors = await Promise.all(feed.files.map(async (f) => readTensor(await read(f))));
      const feeds = Object.fromEntries(tensors);
      if (feed.training !== null) feeds.training = new ort.Tensor("bool", [feed.training], []);
      const times = [];
      for (let time = 0; time < feed.times; time++) times.push(encode(await session.run(feeds)));
      outputs.push(times);
    }
    await session.release();
    return { outputs };
  } catch (error) {
    return { error: String(error?.message ?? error) };
  }
}

function encode(results) {
  const encoded = {};
  for (const [name, tensor] of Object.entries(results)) {
    const { buffer, byteOffset, byteLength } = tensor.data;
    encoded[name] = {
      dtype: tensor.type,
      shape: [...tensor.dims],
      data: base64(new Uint8Array(buffer, byteOffset, byteLength)),
    };
  }
  return encoded;
}

function base64(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}
