/* Attention files in C: run them, check them, read their errors.

     attention FOLDER                      FOLDER/model.onnx: its test vectors, masks, errors
     attention --catalogue MODELS          every model of a folder against its test vectors
     attention MODEL SET OUT [SET OUT ...] the inputs SET/input_N.pb to OUT/output_N.pb
     attention --version                   which ONNX Runtime runs */
#include <ctype.h>
#include <dirent.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "model.h"

typedef struct {
  double rtol, atol;
} Tolerance;

/* An error on one line. Releases it. */
static void print_error(FILE* file, const char* title, OrtStatus* status) {
  fprintf(file, "%s: ", title);
  bool space = false;
  for (const char* at = ort->GetErrorMessage(status); *at; ++at) {
    if (isspace((unsigned char)*at)) {
      space = true;
    } else {
      if (space) putc(' ', file);
      putc(*at, file);
      space = false;
    }
  }
  putc('\n', file);
  ort->ReleaseStatus(status);
}

/* Test vectors. */

/* The tolerance that stands beside a model, in config.txt. */
static OrtStatus* read_tolerance(const char* folder, Tolerance* tolerance) {
  char path[MAX_PATH], line[MAX_TEXT], text[MAX_PATH + MAX_TEXT];
  snprintf(path, sizeof path, "%s/config.txt", folder);
  FILE* file = fopen(path, "r");
  tolerance->rtol = tolerance->atol = -1;
  while (file && fgets(line, sizeof line, file)) {
    sscanf(line, "per_sample_tolerance: %lf", &tolerance->atol);
    sscanf(line, "relative_per_sample_tolerance: %lf", &tolerance->rtol);
  }
  if (file) fclose(file);
  snprintf(text, sizeof text, "%s does not state both tolerances", path);
  return tolerance->rtol < 0 || tolerance->atol < 0 ? failed(text) : NULL;
}

/* How far a result is from what is expected, and whether every number is near enough. */
static OrtStatus* compare(const Tensor* got, const Tensor* wanted, Tolerance tolerance,
                          double* largest, bool* fine) {
  char text[MAX_TEXT];
  if (got->type != wanted->type || got->rank != wanted->rank ||
      memcmp(got->dims, wanted->dims, got->rank * sizeof *got->dims)) {
    snprintf(text, sizeof text, "%s has another type or shape than expected", wanted->name);
    return failed(text);
  }
  for (size_t n = 0; n < wanted->count; ++n) {
    const double a = number_at(got->type, got->data, n);
    const double b = number_at(wanted->type, wanted->data, n);
    double error = a == b || (isnan(a) && isnan(b)) ? 0 : fabs(a - b);
    if (isnan(error)) error = INFINITY;
    if (error > *largest) *largest = error;
    /* Written so that a bound of NaN, which nothing is larger than, fails. */
    if (!(error <= tolerance.atol + tolerance.rtol * fabs(b))) *fine = false;
  }
  return NULL;
}

static OrtStatus* check_set(const Model* model, const char* folder, Tolerance tolerance,
                            double* largest, bool* fine) {
  Tensors inputs = {.count = 0}, wanted = {.count = 0}, got = {.count = 0};
  Port ports[MAX_TENSORS];
  OrtStatus* status = failed(tensors_read(folder, "input", &inputs));
  if (!status) status = failed(tensors_read(folder, "output", &wanted));
  for (size_t n = 0; n < wanted.count; ++n) {
    snprintf(ports[n].name, MAX_NAME, "%s", wanted.items[n].name);
  }
  if (!status) status = model_run(model, &inputs, ports, wanted.count, &got);
  for (size_t n = 0; !status && n < wanted.count; ++n) {
    status = compare(&got.items[n], &wanted.items[n], tolerance, largest, fine);
  }
  tensors_free(&inputs);
  tensors_free(&wanted);
  tensors_free(&got);
  return status;
}

/* Every test_data_set_K of a model; `print` shows each. */
static OrtStatus* check_sets(const Model* model, const char* folder, bool print, int* sets,
                             double* largest, bool* fine) {
  char path[MAX_PATH];
  struct stat found;
  Tolerance tolerance;
  OrtStatus* status = read_tolerance(folder, &tolerance);
  *largest = 0;
  *fine = true;
  for (*sets = 0; !status; ++*sets) {
    snprintf(path, sizeof path, "%s/test_data_set_%d", folder, *sets);
    if (stat(path, &found)) break;
    double error = 0;
    bool good = true;
    status = check_set(model, path, tolerance, &error, &good);
    if (!status && print) {
      printf("  test_data_set_%d  largest error %.1e  %s\n", *sets, error,
             good ? "ok" : "TOO LARGE");
    }
    *largest = fmax(*largest, error);
    *fine &= good;
  }
  if (!status && !*sets) status = failed("there is no test_data_set_0 beside the model");
  return status;
}

static int by_name(const void* a, const void* b) {
  return strcmp(*(char* const*)a, *(char* const*)b);
}

static int catalogue(const char* models) {
  enum { MOST = 1000 };
  static char* names[MOST];
  size_t count = 0, fine_count = 0;
  char path[MAX_PATH];
  struct stat found;
  DIR* folder = opendir(models);
  for (struct dirent* entry; folder && count < MOST && (entry = readdir(folder));) {
    snprintf(path, sizeof path, "%s/%s/model.onnx", models, entry->d_name);
    if (!stat(path, &found)) names[count++] = strdup(entry->d_name);
  }
  if (folder) closedir(folder);
  if (!count) {
    fprintf(stderr, "error: %s holds no folder with a model.onnx\n", models);
    return 1;
  }
  qsort(names, count, sizeof *names, by_name);
  printf("ONNX Runtime %s\n", ort_version);
  for (size_t n = 0; n < count; ++n) {
    Model model;
    int sets;
    double largest;
    bool fine;
    snprintf(path, sizeof path, "%s/%s/model.onnx", models, names[n]);
    OrtStatus* status = model_open(path, &model);
    if (!status) {
      path[strlen(path) - strlen("/model.onnx")] = 0;
      status = check_sets(&model, path, false, &sets, &largest, &fine);
      model_close(&model);
    }
    if (status) {
      snprintf(path, sizeof path, "  %-22s failed", names[n]);
      print_error(stdout, path, status);
    } else {
      printf("  %-22s %-17s %d sets, largest error %.1e\n", names[n],
             fine ? "ok" : "error too large", sets, largest);
      fine_count += fine;
    }
    free(names[n]);
  }
  return fine_count == count ? 0 : 1;
}

/* Inputs of a folder to outputs of another. */
static OrtStatus* run_set(const Model* model, const char* set, const char* out) {
  char path[MAX_PATH];
  Tensors inputs = {.count = 0}, results = {.count = 0};
  OrtStatus* status = failed(tensors_read(set, "input", &inputs));
  if (!status) {
    status = model_run(model, &inputs, model->outputs, model->output_count, &results);
  }
  for (size_t n = 0; !status && n < results.count; ++n) {
    snprintf(path, sizeof path, "%s/output_%zu.pb", out, n);
    status = failed(tensor_write(path, &results.items[n]));
  }
  tensors_free(&inputs);
  tensors_free(&results);
  return status;
}

static int run_sets(const char* path, int count, char** folders) {
  Model model;
  OrtStatus* status = model_open(path, &model);
  if (!status) {
    for (int n = 0; !status && n + 1 < count; n += 2) {
      status = run_set(&model, folders[n], folders[n + 1]);
    }
    model_close(&model);
  }
  if (status) {
    print_error(stderr, "error", status);
    return 1;
  }
  return 0;
}

/* One model, shown. */

static void print_ports(const char* title, const Port* ports, size_t count) {
  printf("  %s:", title);
  for (size_t n = 0; n < count; ++n) {
    printf("%s %s %s[", n ? ";" : "", ports[n].name, name_of_type(ports[n].type));
    for (size_t d = 0; d < ports[n].rank; ++d) {
      if (d) printf(", ");
      if (ports[n].dims[d] < 0) printf("%s", ports[n].dim_names[d]);
      else printf("%lld", (long long)ports[n].dims[d]);
    }
    printf("]");
  }
  printf("\n");
}

/* What the demonstration feeds: tensors that borrow their data from the caller. */
static void feed(Tensors* feeds, const char* name, int type, void* data, size_t rank,
                 const int64_t* dims) {
  Tensor* tensor = NULL;
  for (size_t n = 0; n < feeds->count; ++n) {
    if (!strcmp(feeds->items[n].name, name)) tensor = &feeds->items[n];
  }
  if (!tensor) tensor = &feeds->items[feeds->count++];
  memset(tensor, 0, sizeof *tensor);
  snprintf(tensor->name, sizeof tensor->name, "%s", name);
  tensor->type = type;
  tensor->data = data;
  tensor->rank = rank;
  tensor->count = 1;
  for (size_t d = 0; d < rank; ++d) {
    tensor->dims[d] = dims[d];
    tensor->count *= (size_t)dims[d];
  }
}

static OrtStatus* show(const Model* model, const char* title, const Tensors* feeds) {
  Tensors results = {.count = 0};
  OrtStatus* status = model_run(model, feeds, model->outputs, 1, &results);
  if (!status) {
    const Tensor* output = &results.items[0];
    printf("  %-36s output [", title);
    for (size_t d = 0; d < output->rank; ++d) {
      printf("%s%lld", d ? ", " : "", (long long)output->dims[d]);
    }
    printf("]:");
    for (size_t n = 0; n < output->count; ++n) {
      printf(" %.4f", number_at(output->type, output->data, n));
    }
    printf("\n");
  }
  tensors_free(&results);
  return status;
}

/* Whether the runtime refuses `feeds`; prints what it says and goes on. */
static bool refused(const Model* model, const char* title, const Tensors* feeds) {
  Tensors results = {.count = 0};
  OrtStatus* status = model_run(model, feeds, model->outputs, 1, &results);
  tensors_free(&results);
  if (status) print_error(stdout, title, status);
  else printf("%s: NOT REFUSED\n", title);
  return status != NULL;
}

static bool refused_file(const char* title, OrtStatus* status, Model* model) {
  if (status) {
    print_error(stdout, title, status);
    return true;
  }
  printf("%s: NOT REFUSED\n", title);
  model_close(model);
  return false;
}

static bool refused_half(const char* path) {
  static const char title[] = "  a file cut in half";
  Model model;
  bool result = false;
  FILE* file = fopen(path, "rb");
  if (file && !fseek(file, 0, SEEK_END)) {
    const size_t half = (size_t)ftell(file) / 2;
    void* bytes = malloc(half + 1);
    rewind(file);
    if (bytes && fread(bytes, 1, half, file) == half) {
      result = refused_file(title, model_open_bytes(bytes, half, &model), &model);
    }
    free(bytes);
  }
  if (file) fclose(file);
  return result;
}

/* The demonstration feeds float32 of rank 3 and knows these names. */
static bool can_show(const Model* model) {
  static const char* known[] = {"query", "value", "key", "query_mask", "value_mask", "training",
                                "scale", "concat_score_weight"};
  for (size_t n = 0; n < model->input_count; ++n) {
    bool found = false;
    for (size_t k = 0; k < sizeof known / sizeof *known; ++k) {
      found |= !strcmp(known[k], model->inputs[n].name);
    }
    if (!found) return false;
  }
  const Port* query = &model->inputs[0];
  return query->type == FLOAT32 && query->rank == 3 && query->dims[0] < 0 && query->dims[1] < 0;
}

static OrtStatus* demonstrate(const Model* model, const char* path, bool* all_refused) {
  enum { FREE_DIM = 8, MOST_DIMS = 64 }; /* 8 suits models/additive as well */
  OrtStatus* status = NULL;
  const bool has_key = has_input(model, "key"), has_masks = has_input(model, "value_mask");
  const int64_t dim = model->inputs[0].dims[2] < 0 ? FREE_DIM : model->inputs[0].dims[2];
  if (dim < 2 || dim > MOST_DIMS) return failed("the demonstration wants a dim from 2 to 64");

  /* Two queries look at three keys; the values are easy to tell apart. */
  float query[2 * MOST_DIMS] = {0}, key[3 * MOST_DIMS] = {0}, value[] = {10, 20, 30};
  query[0] = query[dim + 1] = 2;
  key[0] = key[dim + 1] = key[2 * dim] = key[2 * dim + 1] = 1;
  const int64_t query_shape[] = {1, 2, dim}, key_shape[] = {1, 3, dim}, value_shape[] = {1, 3, 1};
  Tensors feeds = {.count = 0};
  feed(&feeds, "query", FLOAT32, query, 3, query_shape);
  feed(&feeds, "value", FLOAT32, has_key ? value : key, 3, has_key ? value_shape : key_shape);
  if (has_key) feed(&feeds, "key", FLOAT32, key, 3, key_shape);

  /* A mask of shape [1, 1] that holds true is no mask. */
  bool none[] = {true}, visible[] = {true, true, false}, asked[] = {true, false};
  const int64_t one[] = {1, 1}, three[] = {1, 3}, two[] = {1, 2};
  if (has_input(model, "query_mask")) feed(&feeds, "query_mask", BOOL, none, 2, one);
  if (has_masks) feed(&feeds, "value_mask", BOOL, none, 2, one);

  /* Scalars have rank 0 and no shape. */
  float scale = 1, half = 0.5f, weight = 1;
  bool training = false, drop = true;
  if (has_input(model, "scale")) feed(&feeds, "scale", FLOAT32, &scale, 0, NULL);
  if (has_input(model, "concat_score_weight")) {
    feed(&feeds, "concat_score_weight", FLOAT32, &weight, 0, NULL);
  }
  if (has_input(model, "training")) feed(&feeds, "training", BOOL, &training, 0, NULL);

  printf("\nMasks and scalars\n");
  Tensors changed = feeds;
  if ((status = show(model, "no mask: value_mask [[true]]", &feeds))) return status;
  if (has_masks) {
    feed(&changed, "value_mask", BOOL, visible, 2, three);
    if ((status = show(model, "value_mask [[true, true, false]]", &changed))) return status;
  }
  if (has_input(model, "query_mask")) {
    changed = feeds;
    feed(&changed, "query_mask", BOOL, asked, 2, two);
    if ((status = show(model, "query_mask [[true, false]]", &changed))) return status;
  }
  if (has_input(model, "scale")) {
    changed = feeds;
    feed(&changed, "scale", FLOAT32, &half, 0, NULL);
    if ((status = show(model, "scale 0.5", &changed))) return status;
  }
  if (has_input(model, "training")) {
    changed = feeds;
    feed(&changed, "training", BOOL, &drop, 0, NULL);
    if ((status = show(model, "training true", &changed))) return status;
  }

  printf("\nBad input\n");
  double doubles[2 * MOST_DIMS] = {0};
  const int64_t shorter[] = {1, 2, has_key ? 1 : dim};
  Model other;
  changed = feeds;
  changed.items[1] = changed.items[--changed.count];
  *all_refused = refused(model, "  no value", &changed);
  changed = feeds;
  feed(&changed, "query", FLOAT64, doubles, 3, query_shape);
  *all_refused &= refused(model, "  float64 query", &changed);
  if (has_masks) {
    changed = feeds;
    feed(&changed, "value_mask", BOOL, asked, 2, two);
    *all_refused &= refused(model, "  mask of 2 for 3 values", &changed);
  }
  if (has_key) {
    changed = feeds;
    feed(&changed, "value", FLOAT32, value, 3, shorter);
    *all_refused &= refused(model, "  3 keys, 2 values", &changed);
  }
  *all_refused &= refused_half(path);
  *all_refused &= refused_file("  a file that is not there",
                               model_open("no_such_model.onnx", &other), &other);

  printf("\nAnd on it goes\n");
  return show(model, "no mask, as before", &feeds);
}

static int one_model(const char* folder) {
  char path[MAX_PATH];
  Model model;
  int sets;
  double largest;
  bool fine = true, all_refused = true;
  snprintf(path, sizeof path, "%s/model.onnx", folder);
  OrtStatus* status = model_open(path, &model);
  if (!status) {
    printf("%s\n", folder);
    print_ports("inputs", model.inputs, model.input_count);
    print_ports("outputs", model.outputs, model.output_count);
    printf("\nTest vectors\n");
    status = check_sets(&model, folder, true, &sets, &largest, &fine);
    if (!status && can_show(&model)) status = demonstrate(&model, path, &all_refused);
    else if (!status) printf("\nNo demonstration: it feeds float32 [1, 2, dim]\n");
    model_close(&model);
  }
  if (status) {
    print_error(stderr, "error", status);
    return 1;
  }
  return fine && all_refused ? 0 : 1;
}

int main(int count, char** arguments) {
  const bool version = count == 2 && !strcmp(arguments[1], "--version");
  const bool all = count == 3 && !strcmp(arguments[1], "--catalogue");
  const bool sets = count >= 4 && count % 2 == 0;
  if (!version && !all && !sets && (count != 2 || arguments[1][0] == '-')) {
    fprintf(stderr, "usage: attention FOLDER | --catalogue MODELS | MODEL SET OUT [SET OUT ...] | "
                    "--version\n");
    return 2;
  }
  const char* error = ort_open();
  if (error) {
    fprintf(stderr, "error: %s\n", error);
    return 1;
  }
  int code = 0;
  if (version) printf("ONNX Runtime %s\n", ort_version);
  else if (all) code = catalogue(arguments[2]);
  else if (sets) code = run_sets(arguments[1], count - 2, arguments + 2);
  else code = one_model(arguments[1]);
  ort_close();
  return code;
}
