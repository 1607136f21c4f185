/* A model file in ONNX Runtime, by tensors of tensor.h. An OrtStatus is an error; NULL is none. */
#ifndef MODEL_H
#define MODEL_H

#include <onnxruntime_c_api.h>

#include "tensor.h"

/* The name, type and shape of an input or output; a free dim is -1 and has a name. */
typedef struct {
  char name[MAX_NAME];
  int type;
  size_t rank;
  int64_t dims[MAX_RANK];
  char dim_names[MAX_RANK][MAX_NAME];
} Port;

typedef struct {
  OrtSession* session;
  Port inputs[MAX_TENSORS], outputs[MAX_TENSORS];
  size_t input_count, output_count;
} Model;

extern const OrtApi* ort;
extern const char* ort_version;

/* Opens ONNX Runtime's library: the path in ORT_DYLIB_PATH, or libonnxruntime where the system
   looks for libraries. NULL, or what is wrong. */
const char* ort_open(void);
void ort_close(void);

/* An error of ours; NULL gives NULL. */
OrtStatus* failed(const char* text);

OrtStatus* model_open(const char* path, Model* model);
OrtStatus* model_open_bytes(const void* bytes, size_t size, Model* model);
void model_close(Model* model);
int has_input(const Model* model, const char* name);

/* Runs on `feeds`; `results`, one for each of the outputs named in `wanted`, are for tensors_free. */
OrtStatus* model_run(const Model* model, const Tensors* feeds, const Port* wanted,
                     size_t wanted_count, Tensors* results);

#endif
