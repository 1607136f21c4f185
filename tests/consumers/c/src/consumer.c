/* attention MODEL INPUTS OUTPUTS: runs one attention file, as docs/format.md says it is to be run.
 *
 * INPUTS holds, for each tensor given, NAME.shape (its dims as text, nothing for a scalar) and
 * NAME.bin (its values, little-endian, in the type the file asks for). OUTPUTS gets the same. */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "onnxruntime_c_api.h"

enum { MOST_INPUTS = 16, MOST_DIMS = 8, LONGEST_PATH = 4096 };

typedef struct {
  const char *name;
  int optional;
  ONNXTensorElementDataType type;
  size_t rank;
  int64_t dims[MOST_DIMS]; /* -1 where the file leaves the size open */
} Input;

static const OrtApi *ort;

static void fail(const char *format, ...) {
  char message[4096];
  va_list values;
  va_start(values, format);
  vsnprintf(message, sizeof message, format, values);
  va_end(values);
  for (char *c = message; *c; c++)
    if (*c == '\n') *c = ' ';
  fprintf(stderr, "error: %s\n", message);
  exit(1);
}

static void check(OrtStatus *status) {
  if (status) fail("%s", ort->GetErrorMessage(status));
}

static void load_library(void) {
  const char *path = getenv("ORT_DYLIB_PATH");
  void *library = dlopen(path ? path : "libonnxruntime.so.1", RTLD_NOW);
  if (!library) fail("%s: set ORT_DYLIB_PATH", dlerror());
  const OrtApiBase *(*base)(void);
  *(void **)&base = dlsym(library, "OrtGetApiBase");
  if (!base) fail("%s", dlerror());
  ort = base()->GetApi(ORT_API_VERSION);
  if (!ort) fail("the header is newer than ONNX Runtime %s", base()->GetVersionString());
}

static void *allocate(size_t bytes) {
  void *memory = calloc(bytes ? bytes : 1, 1);
  if (!memory) fail("no memory for %zu bytes", bytes);
  return memory;
}

static size_t size_of(const char *name, ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL: return 1;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16: return 2;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return 4;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE: return 8;
    default: fail("%s: type %d is none that such a file has", name, (int)type); return 0;
  }
}

static size_t count(const int64_t *dims, size_t rank) {
  size_t elements = 1;
  for (size_t i = 0; i < rank; i++) elements *= (size_t)dims[i];
  return elements;
}

static FILE *open_file(const char *folder, const char *name, const char *suffix, const char *mode) {
  char path[LONGEST_PATH];
  snprintf(path, sizeof path, "%s/%s%s", folder, name, suffix);
  FILE *file = fopen(path, mode);
  if (!file && (mode[0] == 'w' || errno != ENOENT)) fail("%s: %s", path, strerror(errno));
  return file;
}

static OrtValue *tensor(const OrtMemoryInfo *memory, const Input *input, void *data,
                        const int64_t *dims, size_t rank) {
  OrtValue *value = NULL;
  size_t bytes = count(dims, rank) * size_of(input->name, input->type);
  check(ort->CreateTensorWithDataAsOrtValue(memory, data, bytes, dims, rank, input->type, &value));
  return value;
}

/* The tensor that INPUTS has under this name, or NULL. */
static OrtValue *given(const char *folder, const OrtMemoryInfo *memory, const Input *input) {
  int64_t dims[MOST_DIMS];
  size_t rank = 0;
  long long dim;
  FILE *shape = open_file(folder, input->name, ".shape", "r");
  if (!shape) return NULL;
  while (rank < MOST_DIMS && fscanf(shape, "%lld", &dim) == 1 && dim >= 0) dims[rank++] = dim;
  fclose(shape);

  size_t bytes = count(dims, rank) * size_of(input->name, input->type);
  char *data = allocate(bytes + 1);
  FILE *values = open_file(folder, input->name, ".bin", "rb");
  if (!values) fail("%s/%s.bin is missing", folder, input->name);
  size_t found = fread(data, 1, bytes + 1, values);
  fclose(values);
  if (found != bytes) fail("%s.bin: its shape and type take %zu bytes", input->name, bytes);
  return tensor(memory, input, data, dims, rank);
}

/* Numbers of the file's own type, so nothing is rounded here. */
static void store(const Input *input, void *data, size_t at, double number) {
  switch (input->type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE: ((double *)data)[at] = number; break;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: ((float *)data)[at] = (float)number; break;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: ((_Float16 *)data)[at] = (_Float16)number; break;
    default: fail("%s: C has no numbers of type %d", input->name, (int)input->type);
  }
}

/* A trained weight: metadata keep {"scale": 0.5} or, for [dim], {"scale": [0.5, ...]}. */
static OrtValue *trained(const OrtMemoryInfo *memory, const OrtModelMetadata *metadata,
                         OrtAllocator *allocator, const Input *input) {
  char *json = NULL, *end, key[64];
  check(ort->ModelMetadataLookupCustomMetadataMap(metadata, allocator, "onnx_attn.weights", &json));
  snprintf(key, sizeof key, "\"%s\":", input->name);
  const char *at = json ? strstr(json, key) : NULL;
  if (!at) fail("%s is neither given nor in onnx_attn.weights", input->name);
  at += strlen(key);
  void *data = allocate(strlen(at) * sizeof(double)); /* a number takes a letter at least */
  int64_t elements = 0;
  do {
    at += strspn(at, " [,");
    double number = strtod(at, &end);
    if (end == at) fail("onnx_attn.weights: no number at %.20s", at);
    store(input, data, (size_t)elements++, number);
    at = end;
  } while (*at == ',' && input->rank == 1);
  check(ort->AllocatorFree(allocator, json));
  return tensor(memory, input, data, &elements, input->rank);
}

/* What stands for a required input that is not given. */
static OrtValue *supplied(const OrtMemoryInfo *memory, const Input *input) {
  int mask = strcmp(input->name, "query_mask") == 0 || strcmp(input->name, "value_mask") == 0;
  if (!mask && strcmp(input->name, "bias") != 0 && strcmp(input->name, "training") != 0)
    fail("%s is required: INPUTS has no %s.shape", input->name, input->name);
  int64_t dims[MOST_DIMS];
  for (size_t i = 0; i < input->rank; i++) dims[i] = input->dims[i] < 0 ? 1 : input->dims[i];
  size_t bytes = count(dims, input->rank) * size_of(input->name, input->type);
  void *data = allocate(bytes); /* zero, False */
  if (mask) memset(data, 1, bytes);
  return tensor(memory, input, data, dims, input->rank);
}

static void describe(const OrtTypeInfo *info, Input *input) {
  const OrtTensorTypeAndShapeInfo *shape = NULL;
  check(ort->CastTypeInfoToTensorInfo(info, &shape));
  if (!shape) fail("%s is no tensor", input->name);
  check(ort->GetTensorElementType(shape, &input->type));
  check(ort->GetDimensionsCount(shape, &input->rank));
  if (input->rank > MOST_DIMS) fail("%s has %zu axes", input->name, input->rank);
  check(ort->GetDimensions(shape, input->dims, input->rank));
}

static size_t all_inputs(const OrtSession *session, OrtAllocator *allocator, Input *inputs) {
  size_t required, optional;
  check(ort->SessionGetInputCount(session, &required));
  check(ort->SessionGetOverridableInitializerCount(session, &optional));
  if (required + optional > MOST_INPUTS) fail("%zu inputs", required + optional);
  for (size_t i = 0; i < required + optional; i++) {
    OrtTypeInfo *info = NULL;
    char *name = NULL;
    if (i < required) {
      check(ort->SessionGetInputName(session, i, allocator, &name));
      check(ort->SessionGetInputTypeInfo(session, i, &info));
    } else {
      check(ort->SessionGetOverridableInitializerName(session, i - required, allocator, &name));
      check(ort->SessionGetOverridableInitializerTypeInfo(session, i - required, &info));
    }
    inputs[i].name = name;
    inputs[i].optional = i >= required;
    describe(info, &inputs[i]);
    ort->ReleaseTypeInfo(info);
  }
  return required + optional;
}

/* A tensor under a name that the file does not have would be lost without a word. */
static void refuse_strangers(const char *folder, const Input *inputs, size_t number) {
  DIR *directory = opendir(folder);
  if (!directory) fail("%s: %s", folder, strerror(errno));
  for (struct dirent *entry; (entry = readdir(directory));) {
    char *dot = strstr(entry->d_name, ".shape");
    if (!dot) continue;
    *dot = 0;
    size_t i = 0;
    while (i < number && strcmp(inputs[i].name, entry->d_name) != 0) i++;
    if (i == number) fail("the file has no input %s", entry->d_name);
  }
  closedir(directory);
}

static void write_output(const char *folder, const char *name, OrtValue *value) {
  Input output = {.name = name};
  OrtTensorTypeAndShapeInfo *shape = NULL;
  void *data = NULL;
  check(ort->GetTensorTypeAndShape(value, &shape));
  check(ort->GetTensorElementType(shape, &output.type));
  check(ort->GetDimensionsCount(shape, &output.rank));
  check(ort->GetDimensions(shape, output.dims, output.rank));
  check(ort->GetTensorMutableData(value, &data));
  size_t elements = count(output.dims, output.rank), size = size_of(name, output.type);
  FILE *text = open_file(folder, name, ".shape", "w");
  for (size_t i = 0; i < output.rank; i++) fprintf(text, "%lld ", (long long)output.dims[i]);
  FILE *values = open_file(folder, name, ".bin", "wb");
  if (fwrite(data, size, elements, values) != elements) fail("%s.bin: not written", name);
  if (fclose(text) || fclose(values)) fail("%s: not written", name);
  ort->ReleaseTensorTypeAndShapeInfo(shape);
}

int main(int argc, char **argv) {
  if (argc != 4) fail("usage: attention MODEL INPUTS OUTPUTS");
  load_library();

  OrtEnv *env;
  OrtSessionOptions *options;
  OrtSession *session;
  OrtAllocator *allocator;
  OrtMemoryInfo *memory;
  OrtModelMetadata *metadata;
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "consumer", &env));
  check(ort->CreateSessionOptions(&options));
  /* Errors are returned. */
  check(ort->SetSessionLogSeverityLevel(options, ORT_LOGGING_LEVEL_FATAL));
  check(ort->CreateSession(env, argv[1], options, &session));
  check(ort->GetAllocatorWithDefaultOptions(&allocator));
  check(ort->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
  check(ort->SessionGetModelMetadata(session, &metadata));

  Input inputs[MOST_INPUTS];
  const char *names[MOST_INPUTS];
  OrtValue *values[MOST_INPUTS];
  size_t fed = 0, number = all_inputs(session, allocator, inputs);
  refuse_strangers(argv[2], inputs, number);
  for (size_t i = 0; i < number; i++) {
    const char *name = inputs[i].name;
    int weight = strcmp(name, "scale") == 0 || strcmp(name, "concat_score_weight") == 0;
    OrtValue *value = given(argv[2], memory, &inputs[i]);
    if (!value && inputs[i].optional) continue;
    if (!value && weight) value = trained(memory, metadata, allocator, &inputs[i]);
    names[fed] = name;
    values[fed++] = value ? value : supplied(memory, &inputs[i]);
  }

  char *output_names[2];
  OrtValue *outputs[2] = {NULL, NULL};
  size_t output_count;
  check(ort->SessionGetOutputCount(session, &output_count));
  if (output_count > 2) fail("%zu outputs", output_count);
  for (size_t i = 0; i < output_count; i++)
    check(ort->SessionGetOutputName(session, i, allocator, &output_names[i]));
  check(ort->Run(session, NULL, names, (const OrtValue *const *)values, fed,
                 (const char *const *)output_names, output_count, outputs));
  for (size_t i = 0; i < output_count; i++) write_output(argv[3], output_names[i], outputs[i]);
  return 0; /* the system takes back the rest */
}
