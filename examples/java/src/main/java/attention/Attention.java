package attention;

import ai.onnxruntime.NodeInfo;
import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OnnxValue;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtLoggingLevel;
import ai.onnxruntime.OrtSession;
import ai.onnxruntime.TensorInfo;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.stream.Collectors;
import java.util.stream.Stream;

/**
 * Attention files in Java: run them, check them, read their errors.
 *
 * <pre>
 * attention FOLDER                      FOLDER/model.onnx: its test vectors, masks, errors
 * attention --catalogue MODELS          every model of a folder against its test vectors
 * attention MODEL SET OUT [SET OUT ...] the inputs SET/input_N.pb to OUT/output_N.pb
 * attention --version                   which ONNX Runtime runs
 * </pre>
 */
public final class Attention {
  private static final String USAGE =
      "usage: attention FOLDER | --catalogue MODELS | MODEL SET OUT [SET OUT ...] | --version";

  /** One for the process. Errors are thrown: without FATAL they are logged as well. */
  private static final OrtEnvironment ENVIRONMENT =
      OrtEnvironment.getEnvironment(OrtLoggingLevel.ORT_LOGGING_LEVEL_FATAL, "attention");

  private Attention() {}

  public static void main(String[] arguments) {
    Locale.setDefault(Locale.ROOT); // numbers with a point everywhere
    try {
      System.exit(run(List.of(arguments)));
    } catch (OrtException | IOException error) {
      System.err.println("error: " + oneLine(error));
      System.exit(1);
    }
  }

  private static int run(List<String> arguments) throws OrtException, IOException {
    int count = arguments.size();
    String first = count == 0 ? "" : arguments.get(0);
    if (count == 1 && first.equals("--version")) {
      System.out.println("ONNX Runtime " + ENVIRONMENT.getVersion());
      return 0;
    }
    if (count == 2 && first.equals("--catalogue")) {
      return catalogue(Path.of(arguments.get(1))) ? 0 : 1;
    }
    if (count % 2 == 1 && !first.startsWith("-")) {
      if (count == 1) return oneModel(Path.of(first)) ? 0 : 1;
      runSets(Path.of(first), arguments.subList(1, count));
      return 0;
    }
    System.err.println(USAGE);
    return 2;
  }

  private static OrtSession open(Path path) throws OrtException, IOException {
    if (!Files.isRegularFile(path)) throw new IOException(path + " is not there");
    return ENVIRONMENT.createSession(path.toString());
  }

  private static String oneLine(Exception error) {
    return String.join(" ", String.valueOf(error.getMessage()).split("\\s+"));
  }

  private static String scientific(double number) {
    return String.format("%.1e", number);
  }

  // Test vectors.

  private record Tolerance(double rtol, double atol) {
    /** The one that stands beside a model, in config.txt. */
    static Tolerance read(Path folder) throws IOException {
      Map<String, String> found =
          Files.readAllLines(folder.resolve("config.txt")).stream()
              .map(line -> line.split(": ", 2))
              .filter(parts -> parts.length == 2)
              .collect(Collectors.toMap(parts -> parts[0], parts -> parts[1]));
      try {
        return new Tolerance(
            Double.parseDouble(found.getOrDefault("relative_per_sample_tolerance", "none")),
            Double.parseDouble(found.getOrDefault("per_sample_tolerance", "none")));
      } catch (NumberFormatException error) {
        throw new IOException(folder + "/config.txt does not state both tolerances", error);
      }
    }
  }

  private record Checked(double largest, boolean fine) {
    Checked and(Checked other) {
      return new Checked(Math.max(largest, other.largest), fine && other.fine);
    }
  }

  private static Checked compare(Tensor got, Tensor wanted, Tolerance tolerance) throws IOException {
    if (got.type() != wanted.type() || !Arrays.equals(got.dims(), wanted.dims())) {
      throw new IOException(wanted.name() + " has another type or shape than expected");
    }
    double[] a = got.numbers(), b = wanted.numbers();
    double largest = 0;
    boolean fine = true;
    for (int i = 0; i < b.length; i++) {
      double error = a[i] == b[i] || Double.isNaN(a[i]) && Double.isNaN(b[i]) ? 0 : Math.abs(a[i] - b[i]);
      if (Double.isNaN(error)) error = Double.POSITIVE_INFINITY;
      largest = Math.max(largest, error);
      fine &= error <= tolerance.atol() + tolerance.rtol() * Math.abs(b[i]);
    }
    return new Checked(largest, fine);
  }

  private static List<Tensor> run(OrtSession session, List<Tensor> inputs)
      throws OrtException, IOException {
    Map<String, OnnxTensor> feeds = new LinkedHashMap<>();
    try {
      for (Tensor input : inputs) feeds.put(input.name(), input.toValue(ENVIRONMENT));
      return run(session, feeds);
    } finally {
      feeds.values().forEach(OnnxTensor::close);
    }
  }

  private static List<Tensor> run(OrtSession session, Map<String, OnnxTensor> feeds)
      throws OrtException, IOException {
    List<Tensor> outputs = new ArrayList<>();
    try (OrtSession.Result result = session.run(feeds)) {
      for (Map.Entry<String, OnnxValue> each : result) {
        if (!(each.getValue() instanceof OnnxTensor value)) {
          throw new IOException(each.getKey() + " is no tensor");
        }
        outputs.add(Tensor.of(each.getKey(), value));
      }
    }
    return outputs;
  }

  /** Every test_data_set_K of a model. */
  private static List<Checked> checkSets(OrtSession session, Path folder)
      throws OrtException, IOException {
    Tolerance tolerance = Tolerance.read(folder);
    List<Checked> sets = new ArrayList<>();
    while (true) {
      Path set = folder.resolve("test_data_set_" + sets.size());
      if (!Files.isDirectory(set)) break;
      List<Tensor> got = run(session, Tensor.readAll(set, "input"));
      List<Tensor> expected = Tensor.readAll(set, "output");
      if (got.size() != expected.size()) throw new IOException(got.size() + " outputs came out");
      Checked checked = new Checked(0, true);
      for (int i = 0; i < got.size(); i++) {
        checked = checked.and(compare(got.get(i), expected.get(i), tolerance));
      }
      sets.add(checked);
    }
    if (sets.isEmpty()) throw new IOException("there is no test_data_set_0 beside the model");
    return sets;
  }

  /** Inputs that Java refuses though the sets feed them: those that may be left out. */
  private static List<String> optionalInputs(OrtSession session, Path folder) throws IOException {
    Set<String> known = session.getInputNames();
    return Tensor.readAll(folder.resolve("test_data_set_0"), "input").stream()
        .map(Tensor::name)
        .filter(name -> !known.contains(name))
        .toList();
  }

  private static String checkModel(Path folder) {
    try (OrtSession session = open(folder.resolve("model.onnx"))) {
      List<String> optional = optionalInputs(session, folder);
      if (!optional.isEmpty()) {
        return String.format(
            "%-17s Java takes no optional input (%s): export with inputs=\"required\"",
            "does not run here", optional.get(0));
      }
      List<Checked> sets = checkSets(session, folder);
      Checked all = sets.stream().reduce(Checked::and).orElseThrow();
      return String.format(
          "%-17s %d sets, largest error %s",
          all.fine() ? "ok" : "error too large", sets.size(), scientific(all.largest()));
    } catch (OrtException | IOException error) {
      return "failed: " + oneLine(error);
    }
  }

  /** Every model in a folder; whether nothing is wrong. */
  private static boolean catalogue(Path models) throws OrtException, IOException {
    List<Path> folders;
    try (Stream<Path> entries = Files.list(models)) {
      folders = entries.filter(f -> Files.isRegularFile(f.resolve("model.onnx"))).sorted().toList();
    }
    if (folders.isEmpty()) throw new IOException(models + " holds no folder with a model.onnx");
    System.out.println("ONNX Runtime " + ENVIRONMENT.getVersion());
    boolean fine = true;
    for (Path folder : folders) {
      String result = checkModel(folder);
      System.out.printf("  %-22s %s%n", folder.getFileName(), result);
      fine &= result.startsWith("ok") || result.startsWith("does not run here");
    }
    return fine;
  }

  /** Inputs of a folder to outputs of another, by pairs. */
  private static void runSets(Path model, List<String> folders) throws OrtException, IOException {
    try (OrtSession session = open(model)) {
      for (int pair = 0; pair < folders.size(); pair += 2) {
        List<Tensor> outputs = run(session, Tensor.readAll(Path.of(folders.get(pair)), "input"));
        for (int n = 0; n < outputs.size(); n++) {
          outputs.get(n).write(Path.of(folders.get(pair + 1), "output_" + n + ".pb"));
        }
      }
    }
  }

  // One model, shown.

  private static String shown(Collection<NodeInfo> ports) {
    return ports.stream()
        .map(port -> port.getName() + " " + shown((TensorInfo) port.getInfo()))
        .collect(Collectors.joining("; "));
  }

  private static String shown(TensorInfo info) {
    List<String> dims = new ArrayList<>();
    for (int d = 0; d < info.getShape().length; d++) {
      long dim = info.getShape()[d];
      dims.add(dim < 0 ? info.getDimensionNames()[d] : Long.toString(dim));
    }
    return Tensor.nameOf(info.type) + dims;
  }

  private static void show(OrtSession session, String title, Map<String, OnnxTensor> feeds)
      throws OrtException, IOException {
    Tensor output = run(session, feeds).get(0);
    String numbers =
        Arrays.stream(output.numbers())
            .mapToObj(number -> String.format("%.4f", number))
            .collect(Collectors.joining(" "));
    System.out.printf("  %-36s output %s: %s%n", title, Arrays.toString(output.dims()), numbers);
  }

  private interface Attempt {
    void run() throws OrtException, IOException;
  }

  /** Whether the attempt throws; prints what the runtime says, and goes on. */
  private static boolean refused(String title, Attempt attempt) {
    try {
      attempt.run();
    } catch (OrtException | IOException error) {
      System.out.printf("  %s: %s%n", title, oneLine(error));
      return true;
    }
    System.out.printf("  %s: NOT REFUSED%n", title);
    return false;
  }

  private static Map<String, OnnxTensor> with(
      Map<String, OnnxTensor> feeds, String name, OnnxTensor value) {
    Map<String, OnnxTensor> changed = new LinkedHashMap<>(feeds);
    changed.put(name, value);
    return changed;
  }

  /** The demonstration feeds float32 of rank 3 and knows these names: its dim, or 0. */
  private static int shownDim(OrtSession session) throws OrtException {
    Set<String> known =
        Set.of(
            "query", "value", "key", "query_mask", "value_mask", "training", "scale",
            "concat_score_weight");
    if (!session.getInputNames().contains("query")) return 0;
    TensorInfo query = (TensorInfo) session.getInputInfo().get("query").getInfo();
    long[] shape = query.getShape();
    if (!known.containsAll(session.getInputNames())
        || query.type != OnnxJavaType.FLOAT
        || shape.length != 3
        || shape[0] >= 0
        || shape[1] >= 0) return 0;
    return shape[2] < 0 ? 8 : (int) shape[2]; // 8 suits models/additive as well
  }

  private static boolean demonstrate(OrtSession session, Path path, int dim)
      throws OrtException, IOException {
    Set<String> names = session.getInputNames();
    // Two queries look at three keys; the values are easy to tell apart.
    float[][][] queries = new float[1][2][dim], keys = new float[1][3][dim];
    queries[0][0][0] = queries[0][1][1] = 2;
    keys[0][0][0] = keys[0][1][1] = keys[0][2][0] = keys[0][2][1] = 1;
    // Nested arrays are copied: for large tensors take buffers, as Tensor does. Scalars are boxed.
    try (OnnxTensor query = OnnxTensor.createTensor(ENVIRONMENT, queries);
        OnnxTensor key = OnnxTensor.createTensor(ENVIRONMENT, keys);
        OnnxTensor value =
            OnnxTensor.createTensor(ENVIRONMENT, new float[][][] {{{10}, {20}, {30}}});
        OnnxTensor none = OnnxTensor.createTensor(ENVIRONMENT, new boolean[][] {{true}});
        OnnxTensor visible =
            OnnxTensor.createTensor(ENVIRONMENT, new boolean[][] {{true, true, false}});
        OnnxTensor asked = OnnxTensor.createTensor(ENVIRONMENT, new boolean[][] {{true, false}});
        OnnxTensor one = OnnxTensor.createTensor(ENVIRONMENT, 1f);
        OnnxTensor half = OnnxTensor.createTensor(ENVIRONMENT, 0.5f);
        OnnxTensor yes = OnnxTensor.createTensor(ENVIRONMENT, true);
        OnnxTensor no = OnnxTensor.createTensor(ENVIRONMENT, false);
        OnnxTensor doubles = OnnxTensor.createTensor(ENVIRONMENT, new double[1][2][dim]);
        OnnxTensor shorter = OnnxTensor.createTensor(ENVIRONMENT, new float[][][] {{{10}, {20}}})) {
      // A mask of shape [1, 1] that holds true is no mask.
      Map<String, OnnxTensor> feeds = new LinkedHashMap<>();
      feeds.put("query", query);
      feeds.put("value", names.contains("key") ? value : key);
      Map<String, OnnxTensor> others =
          Map.of(
              "key", key, "query_mask", none, "value_mask", none, "scale", one,
              "concat_score_weight", one, "training", no);
      for (String name : names) if (others.containsKey(name)) feeds.put(name, others.get(name));

      System.out.println("\nMasks and scalars");
      show(session, "no mask: value_mask [[true]]", feeds);
      Map<String, Map.Entry<String, OnnxTensor>> changes = new LinkedHashMap<>();
      changes.put("value_mask [[true, true, false]]", Map.entry("value_mask", visible));
      changes.put("query_mask [[true, false]]", Map.entry("query_mask", asked));
      changes.put("scale 0.5", Map.entry("scale", half));
      changes.put("training true", Map.entry("training", yes));
      for (var change : changes.entrySet()) {
        String name = change.getValue().getKey();
        if (names.contains(name)) {
          show(session, change.getKey(), with(feeds, name, change.getValue().getValue()));
        }
      }

      System.out.println("\nBad input");
      Map<String, OnnxTensor> without = new LinkedHashMap<>(feeds);
      without.remove("value");
      boolean all = refused("no value", () -> session.run(without));
      all &= refused("float64 query", () -> session.run(with(feeds, "query", doubles)));
      if (names.contains("value_mask")) {
        all &= refused("mask of 2 for 3 values", () -> session.run(with(feeds, "value_mask", asked)));
      }
      if (names.contains("key")) {
        all &= refused("3 keys, 2 values", () -> session.run(with(feeds, "value", shorter)));
      }
      byte[] whole = Files.readAllBytes(path);
      byte[] cut = Arrays.copyOf(whole, whole.length / 2);
      all &= refused("a file cut in half", () -> ENVIRONMENT.createSession(cut).close());
      all &= refused("a file that is not there", () -> open(Path.of("no_such_model.onnx")).close());

      System.out.println("\nAnd on it goes");
      show(session, "no mask, as before", feeds);
      return all;
    }
  }

  /** All of the above for the model in a folder; whether every check held. */
  private static boolean oneModel(Path folder) throws OrtException, IOException {
    Path path = folder.resolve("model.onnx");
    try (OrtSession session = open(path)) {
      System.out.println(folder);
      System.out.println("  inputs: " + shown(session.getInputInfo().values()));
      System.out.println("  outputs: " + shown(session.getOutputInfo().values()));
      System.out.println("\nTest vectors");
      List<String> optional = optionalInputs(session, folder);
      if (!optional.isEmpty()) {
        throw new IOException("Java takes no optional input: " + String.join(", ", optional));
      }
      boolean fine = true;
      List<Checked> sets = checkSets(session, folder);
      for (int n = 0; n < sets.size(); n++) {
        Checked set = sets.get(n);
        System.out.printf(
            "  test_data_set_%d  largest error %s  %s%n",
            n, scientific(set.largest()), set.fine() ? "ok" : "TOO LARGE");
        fine &= set.fine();
      }
      int dim = shownDim(session);
      if (dim >= 2) return demonstrate(session, path, dim) && fine;
      System.out.println("\nNo demonstration: it feeds float32 [1, 2, dim]");
      return fine;
    }
  }
}
