package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
)

// A tensor as its file holds it: kind is TensorProto.DataType, raw its little-endian bytes.
type tensor struct {
	name string
	kind int
	dims []int64
	raw  []byte
}

// TensorProto.DataType of the types that attention files have; ONNX Runtime has the same numbers.
const (
	float32Kind  = 1
	boolKind     = 9
	float16Kind  = 10
	float64Kind  = 11
	bfloat16Kind = 16
)

var sizes = map[int]int{boolKind: 1, float16Kind: 2, bfloat16Kind: 2, float32Kind: 4, float64Kind: 8}
var kinds = map[int]string{boolKind: "bool", float16Kind: "float16", bfloat16Kind: "bfloat16",
	float32Kind: "float32", float64Kind: "float64"}

// The fields of message TensorProto in onnx.proto, and protobuf's wire types.
const (
	dimsField = 1
	kindField = 2
	nameField = 8
	rawField  = 9

	varintWire  = 0
	fixed64Wire = 1
	bytesWire   = 2
	fixed32Wire = 5
)

var errCut = errors.New("no TensorProto, or cut short")

func takeVarint(bytes *[]byte) (uint64, error) {
	value, size := binary.Uvarint(*bytes)
	if size <= 0 {
		return 0, errCut
	}
	*bytes = (*bytes)[size:]
	return value, nil
}

func parseTensor(bytes []byte) (*tensor, error) {
	t := &tensor{}
	for len(bytes) > 0 {
		tag, err := takeVarint(&bytes)
		if err != nil {
			return nil, err
		}
		field, value := tag>>3, uint64(0)
		switch tag & 7 {
		case varintWire:
			if value, err = takeVarint(&bytes); err != nil {
				return nil, err
			}
			if field == dimsField {
				t.dims = append(t.dims, int64(value))
			} else if field == kindField {
				t.kind = int(value)
			}
			continue
		case fixed64Wire:
			value = 8
		case fixed32Wire:
			value = 4
		case bytesWire:
			if value, err = takeVarint(&bytes); err != nil {
				return nil, err
			}
		default:
			return nil, errCut
		}
		if value > uint64(len(bytes)) {
			return nil, errCut
		}
		content := bytes[:value]
		bytes = bytes[value:]
		switch field {
		case nameField:
			t.name = string(content)
		case rawField:
			t.raw = append([]byte{}, content...)
		case dimsField:
			for len(content) > 0 {
				dim, err := takeVarint(&content)
				if err != nil {
					return nil, err
				}
				t.dims = append(t.dims, int64(dim))
			}
		}
	}
	size, known := sizes[t.kind]
	if !known {
		return nil, fmt.Errorf("data type %d is not one of an attention file", t.kind)
	}
	for _, dim := range t.dims {
		if dim < 0 || dim > 0 && size > math.MaxInt/int(dim) {
			return nil, errors.New("a dim is out of range")
		}
		size *= int(dim)
	}
	if size != len(t.raw) {
		return nil, fmt.Errorf("%d bytes of raw_data for dims %v", len(t.raw), t.dims)
	}
	return t, nil
}

// Every KIND_0.pb, KIND_1.pb, ... of a folder, at least one.
func readTensors(folder, kind string) ([]*tensor, error) {
	var tensors []*tensor
	for {
		path := filepath.Join(folder, fmt.Sprintf("%s_%d.pb", kind, len(tensors)))
		bytes, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) && len(tensors) > 0 {
			return tensors, nil
		}
		if err != nil {
			return nil, err
		}
		t, err := parseTensor(bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		tensors = append(tensors, t)
	}
}

func (t *tensor) write(path string) error {
	var bytes []byte
	put := func(values ...uint64) {
		for _, value := range values {
			bytes = binary.AppendUvarint(bytes, value)
		}
	}
	for _, dim := range t.dims {
		put(dimsField<<3|varintWire, uint64(dim))
	}
	put(kindField<<3|varintWire, uint64(t.kind))
	put(nameField<<3|bytesWire, uint64(len(t.name)))
	bytes = append(bytes, t.name...)
	put(rawField<<3|bytesWire, uint64(len(t.raw)))
	bytes = append(bytes, t.raw...)
	return os.WriteFile(path, bytes, 0o666)
}

// The elements, each exactly.
func (t *tensor) numbers() []float64 {
	size := sizes[t.kind]
	numbers := make([]float64, len(t.raw)/size)
	for i := range numbers {
		b := t.raw[i*size:]
		switch t.kind {
		case float64Kind:
			numbers[i] = math.Float64frombits(binary.LittleEndian.Uint64(b))
		case float32Kind:
			numbers[i] = float64(math.Float32frombits(binary.LittleEndian.Uint32(b)))
		case float16Kind:
			numbers[i] = half(binary.LittleEndian.Uint16(b))
		case bfloat16Kind: // the upper half of a float32
			numbers[i] = float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(b)) << 16))
		default:
			numbers[i] = float64(b[0])
		}
	}
	return numbers
}

// IEEE 754 binary16: 1 sign bit, 5 of exponent, 10 of fraction.
func half(bits uint16) float64 {
	exponent, fraction := int(bits>>10&31), float64(bits&1023)
	var size float64
	switch {
	case exponent == 0:
		size = math.Ldexp(fraction, -24)
	case exponent == 31 && fraction != 0:
		size = math.NaN()
	case exponent == 31:
		size = math.Inf(1)
	default:
		size = math.Ldexp(1024+fraction, exponent-25)
	}
	if bits>>15 == 1 {
		return -size
	}
	return size
}
