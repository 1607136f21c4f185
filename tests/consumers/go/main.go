// attention MODEL INPUTS OUTPUTS: runs one attention file, as docs/format.md says it is to be run.
//
// INPUTS holds, for each tensor given, NAME.shape (its dims as text, nothing for a scalar) and
// NAME.bin (its values, little-endian, in the type the file asks for). OUTPUTS gets the same.
package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	ort "github.com/yalue/onnxruntime_go"
)

type metadata struct {
	dtype   string
	weights map[string]json.RawMessage
}

func sizeOf(kind ort.TensorElementDataType) (int, error) {
	switch kind {
	case ort.TensorElementDataTypeBool:
		return 1, nil
	case ort.TensorElementDataTypeFloat16, ort.TensorElementDataTypeBFloat16:
		return 2, nil
	case ort.TensorElementDataTypeFloat:
		return 4, nil
	case ort.TensorElementDataTypeDouble:
		return 8, nil
	}
	return 0, fmt.Errorf("%s is a type that no such file has", kind)
}

func count(shape ort.Shape) int {
	elements := 1
	for _, dim := range shape {
		elements *= int(dim)
	}
	return elements
}

// The binding wants a byte, even of a tensor without elements.
func buffer(shape ort.Shape, data []byte, kind ort.TensorElementDataType) (*ort.CustomDataTensor, error) {
	if len(data) == 0 {
		data = make([]byte, 1)
	}
	return ort.NewCustomDataTensor(shape, data, kind)
}

// The binding's tensors need an axis: a scalar is a value of its own, and there is none of 16 bits.
func tensor(name string, kind ort.TensorElementDataType, shape ort.Shape, data []byte) (ort.Value, error) {
	size, err := sizeOf(kind)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(data) != count(shape)*size {
		return nil, fmt.Errorf("%s.bin has %d bytes, its shape and type take %d",
			name, len(data), count(shape)*size)
	}
	if len(shape) > 0 {
		return buffer(shape, data, kind)
	}
	switch kind {
	case ort.TensorElementDataTypeBool:
		return ort.NewScalar(data[0] != 0)
	case ort.TensorElementDataTypeFloat:
		return ort.NewScalar(math.Float32frombits(binary.LittleEndian.Uint32(data)))
	case ort.TensorElementDataTypeDouble:
		return ort.NewScalar(math.Float64frombits(binary.LittleEndian.Uint64(data)))
	}
	return nil, fmt.Errorf("%s: the Go binding has no scalar of type %s", name, kind)
}

func readTensor(folder, name string, kind ort.TensorElementDataType) (ort.Value, ort.Shape, error) {
	text, err := os.ReadFile(filepath.Join(folder, name+".shape"))
	if err != nil {
		return nil, nil, err
	}
	var shape ort.Shape
	for _, word := range strings.Fields(string(text)) {
		dim, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			return nil, nil, fmt.Errorf("%s.shape: %w", name, err)
		}
		shape = append(shape, dim)
	}
	data, err := os.ReadFile(filepath.Join(folder, name+".bin"))
	if err != nil {
		return nil, nil, err
	}
	value, err := tensor(name, kind, shape, data)
	return value, shape, err
}

// Trained weights are numbers of the file's own type, so nothing is rounded here.
func half(number float32) uint16 {
	bits := math.Float32bits(number)
	sign, exponent, fraction := uint16(bits>>16)&0x8000, int(bits>>23&0xff)-127, bits&0x7fffff
	switch {
	case exponent > 15:
		return sign | 0x7c00
	case exponent >= -14:
		return sign | uint16(exponent+15)<<10 | uint16(fraction>>13)
	default:
		return sign | uint16((fraction|0x800000)>>uint(-exponent-1))
	}
}

func encode(kind ort.TensorElementDataType, numbers []float64) []byte {
	var data bytes.Buffer
	for _, number := range numbers {
		var word any
		switch kind {
		case ort.TensorElementDataTypeDouble:
			word = number
		case ort.TensorElementDataTypeFloat16:
			word = half(float32(number))
		case ort.TensorElementDataTypeBFloat16:
			word = uint16(math.Float32bits(float32(number)) >> 16)
		default:
			word = float32(number)
		}
		binary.Write(&data, binary.LittleEndian, word) // a buffer takes all
	}
	return data.Bytes()
}

// What stands for a required input that is not given.
func supply(input ort.InputOutputInfo, meta metadata) (ort.Value, error) {
	shape := ort.Shape{}
	for _, dim := range input.Dimensions {
		if dim < 0 {
			dim = 1
		}
		shape = append(shape, dim)
	}
	size, err := sizeOf(input.DataType)
	if err != nil {
		return nil, err
	}
	data := make([]byte, count(shape)*size) // zero, False
	switch input.Name {
	case "query_mask", "value_mask":
		data = bytes.Repeat([]byte{1}, len(data))
	case "bias", "training":
	case "scale", "concat_score_weight":
		var numbers []float64
		var number float64
		if json.Unmarshal(meta.weights[input.Name], &number) == nil {
			numbers = []float64{number}
		} else if json.Unmarshal(meta.weights[input.Name], &numbers) != nil {
			return nil, fmt.Errorf("%s is neither given nor in onnx_attn.weights", input.Name)
		}
		for i := range shape {
			shape[i] = int64(len(numbers))
		}
		data = encode(input.DataType, numbers)
	default:
		return nil, fmt.Errorf("%s is required, but not in INPUTS", input.Name)
	}
	return tensor(input.Name, input.DataType, shape, data)
}

func readMetadata(model string) (metadata, error) {
	var meta metadata
	stored, err := ort.GetModelMetadata(model)
	if err != nil {
		return meta, err
	}
	defer stored.Destroy()
	text, found, err := stored.LookupCustomMetadataMap("onnx_attn.weights")
	if err == nil && found {
		err = json.Unmarshal([]byte(text), &meta.weights)
	}
	if err != nil {
		return meta, fmt.Errorf("onnx_attn.weights: %w", err)
	}
	var config struct{ Dtype string }
	text, found, err = stored.LookupCustomMetadataMap("onnx_attn.config")
	if err == nil && found {
		err = json.Unmarshal([]byte(text), &config)
	}
	meta.dtype = config.Dtype
	return meta, err
}

// The binding does not list optional inputs, so name and type are what the page says.
func optionalType(name string, meta metadata, float ort.TensorElementDataType) (ort.TensorElementDataType, error) {
	switch name {
	case "query_mask", "value_mask", "training":
		return ort.TensorElementDataTypeBool, nil
	case "scale", "concat_score_weight":
		if strings.HasPrefix(meta.dtype, "mixed_") {
			return ort.TensorElementDataTypeFloat, nil
		}
		return float, nil
	case "bias":
		return float, nil
	}
	return ort.TensorElementDataTypeUndefined, fmt.Errorf("the file has no input %s", name)
}

func consume(model, folder, outputFolder string) error {
	inputs, outputs, err := ort.GetInputOutputInfo(model)
	if err != nil {
		return err
	}
	meta, err := readMetadata(model)
	if err != nil {
		return err
	}
	var names, outputNames []string
	var values, results []ort.Value
	shapes := map[string]ort.Shape{}
	known := map[string]bool{}
	for _, input := range inputs {
		known[input.Name] = true
		var value ort.Value
		if _, missing := os.Stat(filepath.Join(folder, input.Name+".shape")); missing == nil {
			value, shapes[input.Name], err = readTensor(folder, input.Name, input.DataType)
		} else {
			value, err = supply(input, meta)
		}
		if err != nil {
			return err
		}
		names, values = append(names, input.Name), append(values, value)
	}
	given, err := filepath.Glob(filepath.Join(folder, "*.shape"))
	if err != nil {
		return err
	}
	for _, path := range given {
		name := strings.TrimSuffix(filepath.Base(path), ".shape")
		if known[name] {
			continue
		}
		kind, err := optionalType(name, meta, inputs[0].DataType)
		if err != nil {
			return err
		}
		value, _, err := readTensor(folder, name, kind)
		if err != nil {
			return err
		}
		names, values = append(names, name), append(values, value)
	}

	// The binding makes no tensor of 16 bits for a result, so each gets its own buffer: all but
	// the last axis are the query's, the last is the value's, or the number of its positions.
	query, value := shapes["query"], shapes["value"]
	if len(query) < 3 || len(value) < 3 {
		return errors.New("query and value need at least 3 axes")
	}
	data := make([][]byte, len(outputs))
	buffers := make([]*ort.CustomDataTensor, len(outputs))
	for i, output := range outputs {
		last := value[len(value)-1]
		if output.Name == "attention_scores" {
			last = value[len(value)-2]
		}
		shape := append(query[:len(query)-1:len(query)-1], last)
		size, err := sizeOf(output.DataType)
		if err != nil {
			return err
		}
		data[i] = make([]byte, count(shape)*size)
		buffers[i], err = buffer(shape, data[i], output.DataType)
		if err != nil {
			return fmt.Errorf("%s: %w", output.Name, err)
		}
		outputNames, results = append(outputNames, output.Name), append(results, buffers[i])
	}

	session, err := ort.NewDynamicAdvancedSession(model, names, outputNames, nil)
	if err != nil {
		return err
	}
	defer session.Destroy()
	if err := session.Run(values, results); err != nil {
		return err
	}
	for i, result := range buffers {
		text := strings.Trim(fmt.Sprint([]int64(result.GetShape())), "[]")
		if err := os.WriteFile(filepath.Join(outputFolder, outputNames[i]+".shape"), []byte(text), 0o644); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(outputFolder, outputNames[i]+".bin"), data[i], 0o644); err != nil {
			return err
		}
	}
	return nil
}

func run(arguments []string) error {
	if len(arguments) != 3 {
		return errors.New("usage: attention MODEL INPUTS OUTPUTS")
	}
	ort.SetSharedLibraryPath(os.Getenv("ORT_DYLIB_PATH"))
	if err := ort.InitializeEnvironment(ort.WithLogLevelFatal()); err != nil { // errors are returned
		return err
	}
	defer ort.DestroyEnvironment()
	return consume(arguments[0], arguments[1], arguments[2])
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", strings.ReplaceAll(err.Error(), "\n", " "))
		os.Exit(1)
	}
}
