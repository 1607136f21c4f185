package attention;

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.BufferUnderflowException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/** A test vector: a TensorProto file, read and written without a protobuf library. */
record Tensor(String name, OnnxJavaType type, long[] dims, ByteBuffer data) {
  // The fields of message TensorProto in onnx.proto, and protobuf's wire types.
  private static final int DIMS = 1, DATA_TYPE = 2, NAME = 8, RAW_DATA = 9;
  private static final int VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5;

  /** The type of TensorProto.DataType; attention files have no other. */
  private static OnnxJavaType typeOf(int code) throws IOException {
    return switch (code) {
      case 1 -> OnnxJavaType.FLOAT;
      case 9 -> OnnxJavaType.BOOL;
      case 10 -> OnnxJavaType.FLOAT16;
      case 11 -> OnnxJavaType.DOUBLE;
      case 16 -> OnnxJavaType.BFLOAT16;
      default -> throw new IOException("data type " + code + " is not one of an attention file");
    };
  }

  private static int codeOf(OnnxJavaType type) throws IOException {
    return switch (type) {
      case FLOAT -> 1;
      case BOOL -> 9;
      case FLOAT16 -> 10;
      case DOUBLE -> 11;
      case BFLOAT16 -> 16;
      default -> throw new IOException("a tensor of " + type + " is none of an attention file");
    };
  }

  /** A type's name, as NumPy has it. */
  static String nameOf(OnnxJavaType type) {
    return switch (type) {
      case FLOAT -> "float32";
      case DOUBLE -> "float64";
      default -> type.toString().toLowerCase();
    };
  }

  /** Every KIND_0.pb, KIND_1.pb, ... of a folder, at least one. */
  static List<Tensor> readAll(Path folder, String kind) throws IOException {
    List<Tensor> tensors = new ArrayList<>();
    while (true) {
      Path path = folder.resolve(kind + "_" + tensors.size() + ".pb");
      if (!Files.exists(path)) {
        if (tensors.isEmpty()) throw new IOException(path + " is not there");
        return tensors;
      }
      try {
        tensors.add(parse(ByteBuffer.wrap(Files.readAllBytes(path))));
      } catch (BufferUnderflowException | IllegalArgumentException error) {
        throw new IOException(path + ": no TensorProto, or cut short", error);
      } catch (IOException error) {
        throw new IOException(path + ": " + error.getMessage(), error);
      }
    }
  }

  private static Tensor parse(ByteBuffer bytes) throws IOException {
    String name = "";
    int code = 0;
    List<Long> dims = new ArrayList<>();
    ByteBuffer data = ByteBuffer.allocateDirect(0);
    while (bytes.hasRemaining()) {
      long tag = varint(bytes);
      int field = (int) (tag >> 3);
      long size;
      switch ((int) (tag & 7)) {
        case VARINT -> {
          long value = varint(bytes);
          if (field == DIMS) dims.add(value);
          if (field == DATA_TYPE) code = (int) value;
          continue;
        }
        case FIXED64 -> size = 8;
        case FIXED32 -> size = 4;
        case BYTES -> size = varint(bytes);
        default -> throw new BufferUnderflowException();
      }
      if (size < 0 || size > bytes.remaining()) throw new BufferUnderflowException();
      byte[] content = new byte[(int) size];
      bytes.get(content);
      if (field == NAME) name = new String(content, StandardCharsets.UTF_8);
      if (field == RAW_DATA) data = ByteBuffer.allocateDirect(content.length).put(content).rewind();
      if (field == DIMS) {
        ByteBuffer packed = ByteBuffer.wrap(content);
        while (packed.hasRemaining()) dims.add(varint(packed));
      }
    }
    OnnxJavaType type = typeOf(code);
    long[] shape = dims.stream().mapToLong(Long::longValue).toArray();
    if (bytesOf(type, shape) != data.capacity()) throw new IOException("raw_data does not fit dims");
    // ONNX Runtime takes a direct buffer in the machine's order as it is; others it copies.
    return new Tensor(name, type, shape, data.order(ByteOrder.nativeOrder()));
  }

  private static long bytesOf(OnnxJavaType type, long[] dims) throws IOException {
    long size = type.size;
    for (long dim : dims) {
      if (dim < 0) throw new IOException("a dim is out of range");
      try {
        size = Math.multiplyExact(size, dim);
      } catch (ArithmeticException error) {
        throw new IOException("a dim is out of range", error);
      }
    }
    return size;
  }

  private static long varint(ByteBuffer bytes) {
    long value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      byte next = bytes.get();
      value |= (long) (next & 127) << shift;
      if (next >= 0) return value;
    }
    throw new BufferUnderflowException();
  }

  /** What came out of a run, copied: the run's result is closed after it. */
  static Tensor of(String name, OnnxTensor value) {
    ByteBuffer data = value.getByteBuffer().order(ByteOrder.nativeOrder());
    return new Tensor(name, value.getInfo().type, value.getInfo().getShape(), data);
  }

  /** For ONNX Runtime, which borrows the data; to be closed. */
  OnnxTensor toValue(OrtEnvironment environment) throws OrtException {
    return OnnxTensor.createTensor(environment, data.rewind(), dims, type);
  }

  void write(Path path) throws IOException {
    ByteArrayOutputStream bytes = new ByteArrayOutputStream();
    for (long dim : dims) {
      put(bytes, DIMS << 3 | VARINT);
      put(bytes, dim);
    }
    put(bytes, DATA_TYPE << 3 | VARINT);
    put(bytes, codeOf(type));
    byte[] raw = new byte[data.rewind().remaining()];
    data.get(raw).rewind();
    putBytes(bytes, NAME, name.getBytes(StandardCharsets.UTF_8));
    putBytes(bytes, RAW_DATA, raw);
    Files.write(path, bytes.toByteArray());
  }

  private static void putBytes(ByteArrayOutputStream bytes, int field, byte[] content) {
    put(bytes, field << 3 | BYTES);
    put(bytes, content.length);
    bytes.writeBytes(content);
  }

  private static void put(ByteArrayOutputStream bytes, long value) {
    for (; value > 127; value >>= 7) bytes.write((int) (value & 127) | 128);
    bytes.write((int) value);
  }

  /** The elements, each exactly. */
  double[] numbers() {
    double[] numbers = new double[data.capacity() / type.size];
    for (int i = 0; i < numbers.length; i++) {
      numbers[i] =
          switch (type) {
            case DOUBLE -> data.getDouble(8 * i);
            case FLOAT -> data.getFloat(4 * i);
            case FLOAT16 -> half(data.getShort(2 * i));
            case BFLOAT16 -> Float.intBitsToFloat(data.getShort(2 * i) << 16); // its upper half
            default -> data.get(i);
          };
    }
    return numbers;
  }

  /** IEEE 754 binary16: 1 sign bit, 5 of exponent, 10 of fraction. */
  private static double half(short bits) {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double size;
    if (exponent == 0) size = fraction * Math.pow(2, -24);
    else if (exponent == 31) size = fraction == 0 ? Double.POSITIVE_INFINITY : Double.NaN;
    else size = (1024 + fraction) * Math.pow(2, exponent - 25);
    return bits < 0 ? -size : size;
  }
}
