#include "model.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const OrtApi* ort;
const char* ort_version;

static OrtEnv* env;
static OrtMemoryInfo* memory;
static OrtAllocator* allocator;

/* Leaves the function by its clean-up. */
#define TRY(call)                    \
  do {                               \
    if ((status = (call))) goto end; \
  } while (0)

OrtStatus* failed(const char* text) { return text ? ort->CreateStatus(ORT_FAIL, text) : NULL; }

const char* ort_open(void) {
  static char text[MAX_TEXT];
  const char* path = getenv("ORT_DYLIB_PATH");
#ifdef __APPLE__
  if (!path) path = "libonnxruntime.dylib";
#else
  if (!path) path = "libonnxruntime.so.1";
#endif
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    snprintf(text, sizeof text, "%s: set ORT_DYLIB_PATH to ONNX Runtime's library", dlerror());
    return text;
  }
  const OrtApiBase* (*base)(void);
  *(void**)&base = dlsym(library, "OrtGetApiBase");
  if (!base) {
    snprintf(text, sizeof text, "%s is not ONNX Runtime's library", path);
    return text;
  }
  ort_version = base()->GetVersionString();
  /* An API is named after its release, as 17 of 1.17. One newer than the library is not there;
     older ones are, in every library. */
  unsigned release = 0;
  sscanf(ort_version, "1.%u", &release);
  if (release >= 12) ort = base()->GetApi(release < ORT_API_VERSION ? release : ORT_API_VERSION);
  if (!ort) {
    snprintf(text, sizeof text, "ONNX Runtime %s is too old: 1.12 or later", ort_version);
    return text;
  }
  /* Errors come back as statuses: without FATAL they are logged as well. */
  OrtStatus* status = ort->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "attention", &env);
  if (!status) status = ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory);
  if (!status) status = ort->GetAllocatorWithDefaultOptions(&allocator);
  if (!status) return NULL;
  snprintf(text, sizeof text, "%s", ort->GetErrorMessage(status));
  ort->ReleaseStatus(status);
  return text;
}

void ort_close(void) {
  if (memory) ort->ReleaseMemoryInfo(memory);
  if (env) ort->ReleaseEnv(env);
}

typedef enum { INPUTS, OPTIONAL_INPUTS, OUTPUTS } Kind;

static OrtStatus* count_ports(const OrtSession* session, Kind kind, size_t* count) {
  switch (kind) {
    case INPUTS: return ort->SessionGetInputCount(session, count);
    case OPTIONAL_INPUTS: return ort->SessionGetOverridableInitializerCount(session, count);
    default: return ort->SessionGetOutputCount(session, count);
  }
}

static OrtStatus* port_name(const OrtSession* session, Kind kind, size_t n, char** name) {
  switch (kind) {
    case INPUTS: return ort->SessionGetInputName(session, n, allocator, name);
    case OPTIONAL_INPUTS:
      return ort->SessionGetOverridableInitializerName(session, n, allocator, name);
    default: return ort->SessionGetOutputName(session, n, allocator, name);
  }
}

static OrtStatus* port_type(const OrtSession* session, Kind kind, size_t n, OrtTypeInfo** type) {
  switch (kind) {
    case INPUTS: return ort->SessionGetInputTypeInfo(session, n, type);
    case OPTIONAL_INPUTS:
      return ort->SessionGetOverridableInitializerTypeInfo(session, n, type);
    default: return ort->SessionGetOutputTypeInfo(session, n, type);
  }
}

static OrtStatus* read_port(const OrtSession* session, Kind kind, size_t n, Port* port) {
  OrtStatus* status = NULL;
  OrtTypeInfo* info = NULL;
  const OrtTensorTypeAndShapeInfo* tensor = NULL; /* belongs to info */
  char* name = NULL;
  const char* dim_names[MAX_RANK];
  ONNXTensorElementDataType type;
  TRY(port_name(session, kind, n, &name));
  snprintf(port->name, sizeof port->name, "%s", name);
  TRY(port_type(session, kind, n, &info));
  TRY(ort->CastTypeInfoToTensorInfo(info, &tensor));
  if (!tensor) TRY(failed("an input or output is no tensor"));
  TRY(ort->GetTensorElementType(tensor, &type));
  port->type = (int)type;
  TRY(ort->GetDimensionsCount(tensor, &port->rank));
  if (port->rank > MAX_RANK) TRY(failed("an input or output has too many dims"));
  TRY(ort->GetDimensions(tensor, port->dims, port->rank));
  TRY(ort->GetSymbolicDimensions(tensor, dim_names, port->rank));
  for (size_t d = 0; d < port->rank; ++d) {
    snprintf(port->dim_names[d], MAX_NAME, "%s", dim_names[d]);
  }
end:
  if (info) ort->ReleaseTypeInfo(info);
  if (name) {
    OrtStatus* freed = ort->AllocatorFree(allocator, name);
    if (freed) ort->ReleaseStatus(freed);
  }
  return status;
}

static OrtStatus* read_ports(const OrtSession* session, Kind kind, Port* ports, size_t* count) {
  size_t more;
  OrtStatus* status = count_ports(session, kind, &more);
  if (!status && *count + more > MAX_TENSORS) status = failed("too many inputs or outputs");
  for (size_t n = 0; !status && n < more; ++n) {
    status = read_port(session, kind, n, &ports[(*count)++]);
  }
  return status;
}

static OrtStatus* open_session(const char* path, const void* bytes, size_t size, Model* model) {
  OrtStatus* status = NULL;
  OrtSessionOptions* options = NULL;
  memset(model, 0, sizeof *model);
  TRY(ort->CreateSessionOptions(&options));
  if (path) {
    TRY(ort->CreateSession(env, path, options, &model->session));
  } else {
    TRY(ort->CreateSessionFromArray(env, bytes, size, options, &model->session));
  }
  TRY(read_ports(model->session, INPUTS, model->inputs, &model->input_count));
  TRY(read_ports(model->session, OPTIONAL_INPUTS, model->inputs, &model->input_count));
  TRY(read_ports(model->session, OUTPUTS, model->outputs, &model->output_count));
end:
  if (options) ort->ReleaseSessionOptions(options);
  if (status) model_close(model);
  return status;
}

OrtStatus* model_open(const char* path, Model* model) {
  return open_session(path, NULL, 0, model);
}

OrtStatus* model_open_bytes(const void* bytes, size_t size, Model* model) {
  return open_session(NULL, bytes, size, model);
}

void model_close(Model* model) {
  if (model->session) ort->ReleaseSession(model->session);
  model->session = NULL;
}

int has_input(const Model* model, const char* name) {
  for (size_t n = 0; n < model->input_count; ++n) {
    if (!strcmp(model->inputs[n].name, name)) return 1;
  }
  return 0;
}

/* What came out, copied. */
static OrtStatus* to_tensor(OrtValue* value, const char* name, Tensor* tensor) {
  OrtStatus* status = NULL;
  OrtTensorTypeAndShapeInfo* info = NULL;
  ONNXTensorElementDataType type;
  void* data;
  memset(tensor, 0, sizeof *tensor);
  snprintf(tensor->name, sizeof tensor->name, "%s", name);
  TRY(ort->GetTensorTypeAndShape(value, &info));
  TRY(ort->GetTensorElementType(info, &type));
  tensor->type = (int)type;
  TRY(ort->GetDimensionsCount(info, &tensor->rank));
  if (tensor->rank > MAX_RANK || !size_of_type(tensor->type)) {
    TRY(failed("an output is no tensor of an attention file"));
  }
  TRY(ort->GetDimensions(info, tensor->dims, tensor->rank));
  TRY(ort->GetTensorShapeElementCount(info, &tensor->count));
  TRY(ort->GetTensorMutableData(value, &data));
  const size_t size = tensor->count * size_of_type(tensor->type);
  tensor->data = malloc(size + 1);
  if (!tensor->data) TRY(failed("out of memory"));
  if (size) memcpy(tensor->data, data, size);
end:
  if (info) ort->ReleaseTensorTypeAndShapeInfo(info);
  return status;
}

OrtStatus* model_run(const Model* model, const Tensors* feeds, const Port* wanted,
                     size_t wanted_count, Tensors* results) {
  OrtStatus* status = NULL;
  const char *names[MAX_TENSORS], *wanted_names[MAX_TENSORS];
  OrtValue *values[MAX_TENSORS] = {NULL}, *got[MAX_TENSORS] = {NULL};
  results->count = 0;
  for (size_t n = 0; n < feeds->count; ++n) {
    const Tensor* feed = &feeds->items[n];
    names[n] = feed->name;
    /* The size is in bytes here, in elements in C++. A bool is one byte. The value borrows the
       data, which must live until the run is over. */
    TRY(ort->CreateTensorWithDataAsOrtValue(
        memory, feed->data, feed->count * size_of_type(feed->type), feed->dims, feed->rank,
        (ONNXTensorElementDataType)feed->type, &values[n]));
  }
  for (size_t n = 0; n < wanted_count; ++n) wanted_names[n] = wanted[n].name;
  TRY(ort->Run(model->session, NULL, names, (const OrtValue* const*)values, feeds->count,
               wanted_names, wanted_count, got));
  for (size_t n = 0; n < wanted_count; ++n) {
    TRY(to_tensor(got[n], wanted_names[n], &results->items[results->count]));
    ++results->count;
  }
end:
  for (size_t n = 0; n < MAX_TENSORS; ++n) {
    if (values[n]) ort->ReleaseValue(values[n]);
    if (got[n]) ort->ReleaseValue(got[n]);
  }
  return status;
}
