/* Test vectors: TensorProto files, read and written without a protobuf library. */
#ifndef TENSOR_H
#define TENSOR_H

#include <stddef.h>
#include <stdint.h>

enum { MAX_RANK = 8, MAX_NAME = 64, MAX_TENSORS = 16, MAX_PATH = 4096, MAX_TEXT = 1024 };

/* TensorProto.DataType of onnx.proto; ONNXTensorElementDataType has the same numbers. */
enum { FLOAT32 = 1, BOOL = 9, FLOAT16 = 10, FLOAT64 = 11, BFLOAT16 = 16 };

typedef struct {
  char name[MAX_NAME];
  int type;
  int64_t dims[MAX_RANK];
  size_t rank, count; /* count: elements */
  void* data;         /* count * size_of_type(type) bytes, for tensor_free */
} Tensor;

typedef struct {
  Tensor items[MAX_TENSORS];
  size_t count;
} Tensors;

/* Each gives NULL, or what is wrong in a static buffer. */
const char* tensor_read(const char* path, Tensor* tensor);
const char* tensor_write(const char* path, const Tensor* tensor);

/* Every KIND_0.pb, KIND_1.pb, ... of a folder; at least one. Free them in any case. */
const char* tensors_read(const char* folder, const char* kind, Tensors* tensors);

void tensor_free(Tensor* tensor);
void tensors_free(Tensors* tensors);

/* Bytes of an element, 0 for a type that no attention file has, and the type's name. */
size_t size_of_type(int type);
const char* name_of_type(int type);

/* An element of a float tensor. */
double number_at(int type, const void* data, size_t index);

#endif
