#include "tensor.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The fields of message TensorProto in onnx.proto. */
enum { DIMS = 1, DATA_TYPE = 2, NAME = 8, RAW_DATA = 9 };
/* The wire types of protobuf that can stand in one. */
enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };

static const char* wrong(const char* format, ...) {
  static char text[MAX_PATH + MAX_TEXT];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return text;
}

size_t size_of_type(int type) {
  switch (type) {
    case BOOL: return 1;
    case FLOAT16:
    case BFLOAT16: return 2;
    case FLOAT32: return 4;
    case FLOAT64: return 8;
    default: return 0;
  }
}

const char* name_of_type(int type) {
  switch (type) {
    case BOOL: return "bool";
    case FLOAT16: return "float16";
    case BFLOAT16: return "bfloat16";
    case FLOAT32: return "float32";
    case FLOAT64: return "float64";
    default: return "another type";
  }
}

/* IEEE 754 binary16: 1 sign bit, 5 of exponent, 10 of fraction. */
static double half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double size;
  if (exponent == 0) size = ldexp(fraction, -24);
  else if (exponent == 31) size = fraction ? NAN : INFINITY;
  else size = ldexp(1024 + fraction, exponent - 25);
  return bits >> 15 ? -size : size;
}

double number_at(int type, const void* data, size_t index) {
  switch (type) {
    case FLOAT64: return ((const double*)data)[index];
    case FLOAT32: return ((const float*)data)[index];
    case FLOAT16: return half(((const uint16_t*)data)[index]);
    case BFLOAT16: { /* the upper half of a float32 */
      const uint32_t bits = (uint32_t)((const uint16_t*)data)[index] << 16;
      float number;
      memcpy(&number, &bits, sizeof number);
      return number;
    }
    default: return ((const uint8_t*)data)[index];
  }
}

typedef struct {
  const uint8_t *at, *end;
} Bytes;

static int read_varint(Bytes* bytes, uint64_t* value) {
  *value = 0;
  for (int shift = 0; shift < 64 && bytes->at < bytes->end; shift += 7) {
    const uint8_t byte = *bytes->at++;
    *value |= (uint64_t)(byte & 127) << shift;
    if (byte < 128) return 1;
  }
  return 0;
}

static int add_dim(Tensor* tensor, uint64_t dim) {
  if (tensor->rank == MAX_RANK || dim > INT64_MAX) return 0;
  tensor->dims[tensor->rank++] = (int64_t)dim;
  return 1;
}

/* One field; `raw` is where raw_data lies. Whether the bytes are those of a TensorProto. */
static int read_field(Bytes* bytes, Tensor* tensor, Bytes* raw) {
  uint64_t tag, value;
  if (!read_varint(bytes, &tag)) return 0;
  const uint64_t field = tag >> 3;
  switch (tag & 7) {
    case VARINT:
      if (!read_varint(bytes, &value)) return 0;
      if (field == DATA_TYPE) tensor->type = (int)value;
      return field != DIMS || add_dim(tensor, value);
    case FIXED64: value = 8; break;
    case FIXED32: value = 4; break;
    case BYTES:
      if (!read_varint(bytes, &value)) return 0;
      break;
    default: return 0;
  }
  if (value > (uint64_t)(bytes->end - bytes->at)) return 0;
  Bytes content = {bytes->at, bytes->at + value};
  bytes->at = content.end;
  if (field == NAME) {
    if (value >= MAX_NAME) return 0;
    memcpy(tensor->name, content.at, value);
  } else if (field == RAW_DATA) {
    *raw = content;
  } else if (field == DIMS) {
    while (content.at < content.end) {
      if (!read_varint(&content, &value) || !add_dim(tensor, value)) return 0;
    }
  }
  return 1;
}

static const char* parse(const char* path, Bytes bytes, Tensor* tensor) {
  Bytes raw = {NULL, NULL};
  while (bytes.at < bytes.end) {
    if (!read_field(&bytes, tensor, &raw)) return wrong("%s is no TensorProto, or cut short", path);
  }
  const size_t size = size_of_type(tensor->type), stored = (size_t)(raw.end - raw.at);
  if (!size) return wrong("%s: data type %d is not one of an attention file", path, tensor->type);
  tensor->count = 1;
  for (size_t d = 0; d < tensor->rank; ++d) {
    const size_t dim = (size_t)tensor->dims[d];
    /* More elements than bytes could only overflow the product. */
    tensor->count = dim && tensor->count > SIZE_MAX / size / dim ? SIZE_MAX / size : tensor->count * dim;
  }
  if (stored != tensor->count * size) {
    return wrong("%s: %zu bytes of raw_data for %zu elements", path, stored, tensor->count);
  }
  /* A copy: raw_data starts anywhere in the file, numbers want their own alignment. */
  tensor->data = malloc(stored + 1);
  if (!tensor->data) return wrong("%s: out of memory", path);
  if (stored) memcpy(tensor->data, raw.at, stored);
  return NULL;
}

const char* tensor_read(const char* path, Tensor* tensor) {
  memset(tensor, 0, sizeof *tensor);
  FILE* file = fopen(path, "rb");
  if (!file) return wrong("%s: %s", path, strerror(errno));
  const char* error = NULL;
  uint8_t* bytes = NULL;
  long size = -1;
  if (fseek(file, 0, SEEK_END) == 0) size = ftell(file);
  rewind(file);
  if (size >= 0) bytes = malloc((size_t)size + 1);
  if (!bytes || fread(bytes, 1, (size_t)size, file) != (size_t)size) {
    error = wrong("%s cannot be read", path);
  } else {
    error = parse(path, (Bytes){bytes, bytes + size}, tensor);
  }
  free(bytes);
  fclose(file);
  return error;
}

const char* tensors_read(const char* folder, const char* kind, Tensors* tensors) {
  char path[MAX_PATH];
  for (tensors->count = 0;; ++tensors->count) {
    snprintf(path, sizeof path, "%s/%s_%zu.pb", folder, kind, tensors->count);
    FILE* file = fopen(path, "rb");
    if (!file && errno == ENOENT && tensors->count) return NULL;
    if (file) fclose(file);
    if (tensors->count == MAX_TENSORS) return wrong("%s: more than %d files", folder, MAX_TENSORS);
    const char* error = tensor_read(path, &tensors->items[tensors->count]);
    if (error) return error;
  }
}

void tensor_free(Tensor* tensor) {
  free(tensor->data);
  tensor->data = NULL;
}

void tensors_free(Tensors* tensors) {
  for (size_t n = 0; n < tensors->count; ++n) tensor_free(&tensors->items[n]);
  tensors->count = 0;
}

static void write_varint(FILE* file, uint64_t value) {
  for (; value > 127; value >>= 7) putc((int)(value & 127) | 128, file);
  putc((int)value, file);
}

static void write_bytes(FILE* file, int field, const void* bytes, size_t size) {
  write_varint(file, (uint64_t)field << 3 | BYTES);
  write_varint(file, size);
  fwrite(bytes, 1, size, file);
}

const char* tensor_write(const char* path, const Tensor* tensor) {
  FILE* file = fopen(path, "wb");
  if (!file) return wrong("%s: %s", path, strerror(errno));
  for (size_t d = 0; d < tensor->rank; ++d) {
    write_varint(file, DIMS << 3 | VARINT);
    write_varint(file, (uint64_t)tensor->dims[d]);
  }
  write_varint(file, DATA_TYPE << 3 | VARINT);
  write_varint(file, (uint64_t)tensor->type);
  write_bytes(file, NAME, tensor->name, strlen(tensor->name));
  write_bytes(file, RAW_DATA, tensor->data, tensor->count * size_of_type(tensor->type));
  const int failed = ferror(file);
  if (fclose(file) || failed) return wrong("%s cannot be written", path);
  return NULL;
}
