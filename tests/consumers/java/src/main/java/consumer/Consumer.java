package consumer;

import ai.onnxruntime.NodeInfo;
import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OnnxValue;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtLoggingLevel;
import ai.onnxruntime.OrtSession;
import ai.onnxruntime.TensorInfo;
import ai.onnxruntime.platform.Fp16Conversions;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.DirectoryStream;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;

/**
 * attention MODEL INPUTS OUTPUTS: runs one attention file, as docs/format.md says it is to be run.
 *
 * <p>INPUTS holds, for each tensor given, NAME.shape (its dims as text, nothing for a scalar) and
 * NAME.bin (its values, little-endian, in the type the file asks for). OUTPUTS gets the same.
 */
public final class Consumer {
  private final OrtEnvironment environment;
  private final OrtSession session;
  private final Path folder;

  private Consumer(OrtEnvironment environment, OrtSession session, Path folder) {
    this.environment = environment;
    this.session = session;
    this.folder = folder;
  }

  public static void main(String[] arguments) {
    if (arguments.length != 3) {
      fail("usage: attention MODEL INPUTS OUTPUTS");
    }
    try (OrtEnvironment environment =
            OrtEnvironment.getEnvironment(OrtLoggingLevel.ORT_LOGGING_LEVEL_FATAL, "consumer");
        OrtSession.SessionOptions options = new OrtSession.SessionOptions();
        OrtSession session = environment.createSession(arguments[0], options)) {
      new Consumer(environment, session, Path.of(arguments[1])).run(Path.of(arguments[2]));
    } catch (NoSuchFileException error) {
      fail(error.getMessage() + " is missing");
    } catch (OrtException | IOException | IllegalArgumentException error) {
      fail(error.getMessage());
    }
  }

  private static void fail(String message) {
    System.err.println("error: " + message.replace('\n', ' '));
    System.exit(1);
  }

  /** The binding lists required inputs and takes no others: optional ones keep their default. */
  private void run(Path outputs) throws OrtException, IOException {
    refuseStrangers();
    Map<String, OnnxTensor> feed = new HashMap<>();
    try {
      for (Map.Entry<String, NodeInfo> input : session.getInputInfo().entrySet()) {
        String name = input.getKey();
        TensorInfo info = (TensorInfo) input.getValue().getInfo();
        boolean given = Files.exists(folder.resolve(name + ".shape"));
        feed.put(name, given ? read(name, info) : supply(name, info));
      }
      try (OrtSession.Result result = session.run(feed)) {
        for (Map.Entry<String, OnnxValue> output : result) {
          write(outputs, output.getKey(), (OnnxTensor) output.getValue());
        }
      }
    } finally {
      feed.values().forEach(OnnxTensor::close);
    }
  }

  private void refuseStrangers() throws OrtException, IOException {
    try (DirectoryStream<Path> shapes = Files.newDirectoryStream(folder, "*.shape")) {
      for (Path shape : shapes) {
        String name = shape.getFileName().toString().replace(".shape", "");
        if (!session.getInputInfo().containsKey(name)) {
          throw new IllegalArgumentException("the file has no input " + name + " that can be fed");
        }
      }
    }
  }

  private OnnxTensor read(String name, TensorInfo info) throws OrtException, IOException {
    String words = Files.readString(folder.resolve(name + ".shape")).strip();
    long[] shape =
        words.isEmpty()
            ? new long[0]
            : Arrays.stream(words.split("\\s+")).mapToLong(Long::parseLong).toArray();
    byte[] data = Files.readAllBytes(folder.resolve(name + ".bin"));
    return tensor(name, info.type, shape, ByteBuffer.wrap(data));
  }

  /** What stands for a required input that is not given. */
  private OnnxTensor supply(String name, TensorInfo info) throws OrtException {
    if (name.equals("scale") || name.equals("concat_score_weight")) {
      double[] numbers = trained(name);
      ByteBuffer data = buffer(numbers.length * info.type.size);
      Arrays.stream(numbers).forEach(number -> put(data, info.type, number));
      long[] shape = Arrays.stream(info.getShape()).map(dim -> numbers.length).toArray();
      return tensor(name, info.type, shape, data.rewind());
    }
    long[] shape = Arrays.stream(info.getShape()).map(dim -> dim < 0 ? 1 : dim).toArray();
    ByteBuffer data = buffer(count(shape) * info.type.size); // zero, False
    switch (name) {
      case "query_mask", "value_mask" -> Arrays.fill(data.array(), (byte) 1);
      case "bias", "training" -> {}
      default -> throw new IllegalArgumentException(name + " is required, but not in INPUTS");
    }
    return tensor(name, info.type, shape, data);
  }

  /** A trained weight: metadata keep {"scale": 0.5} or, for [dim], {"scale": [0.5, ...]}. */
  private double[] trained(String name) throws OrtException {
    String json = session.getMetadata().getCustomMetadataValue("onnx_attn.weights").orElse("");
    Matcher found = Pattern.compile('"' + name + "\":\\s*\\[?([-+.,eE\\d\\s]+)").matcher(json);
    if (!found.find()) {
      throw new IllegalArgumentException(name + " is neither given nor in onnx_attn.weights");
    }
    return Arrays.stream(found.group(1).split(","))
        .filter(word -> !word.isBlank())
        .mapToDouble(Double::parseDouble)
        .toArray();
  }

  private static void put(ByteBuffer data, OnnxJavaType type, double number) {
    switch (type) {
      case DOUBLE -> data.putDouble(number);
      case FLOAT16 -> data.putShort(Fp16Conversions.floatToFp16((float) number));
      case BFLOAT16 -> data.putShort(Fp16Conversions.floatToBf16((float) number));
      default -> data.putFloat((float) number);
    }
  }

  private OnnxTensor tensor(String name, OnnxJavaType type, long[] shape, ByteBuffer data)
      throws OrtException {
    int bytes = count(shape) * type.size;
    if (data.remaining() != bytes) {
      throw new IllegalArgumentException(
          name + ".bin has " + data.remaining() + " bytes, its shape and type take " + bytes);
    }
    ByteBuffer direct = ByteBuffer.allocateDirect(bytes).order(ByteOrder.nativeOrder());
    return OnnxTensor.createTensor(environment, direct.put(data).rewind(), shape, type);
  }

  private static ByteBuffer buffer(int bytes) {
    return ByteBuffer.allocate(bytes).order(ByteOrder.LITTLE_ENDIAN);
  }

  private static int count(long[] shape) {
    return Math.toIntExact(Arrays.stream(shape).reduce(1, Math::multiplyExact));
  }

  private static void write(Path folder, String name, OnnxTensor tensor) throws IOException {
    ByteBuffer values = tensor.getByteBuffer();
    byte[] data = new byte[values.remaining()];
    values.get(data);
    Files.write(folder.resolve(name + ".bin"), data);
    String shape =
        Arrays.stream(tensor.getInfo().getShape())
            .mapToObj(Long::toString)
            .collect(Collectors.joining(" "));
    Files.writeString(folder.resolve(name + ".shape"), shape);
  }
}
