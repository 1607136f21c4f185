package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	ort "github.com/yalue/onnxruntime_go"
)

// Opens ONNX Runtime's library, whose path is in ORT_DYLIB_PATH. It must be 1.24 or later, which is
// what v1.27.0 of onnxruntime_go was made for.
func openRuntime() error {
	path := os.Getenv("ORT_DYLIB_PATH")
	if path == "" {
		return errors.New("set ORT_DYLIB_PATH to the path of ONNX Runtime's library")
	}
	ort.SetSharedLibraryPath(path)
	// Errors come back as values: without Fatal they are logged as well.
	return ort.InitializeEnvironment(ort.WithLogLevelFatal())
}

// The input as a value of ONNX Runtime. For a type known when you write the program,
// ort.NewTensor(shape, []float32{...}) does it.
func (t *tensor) value() (ort.Value, error) {
	if len(t.dims) > 0 {
		return ort.NewCustomDataTensor(ort.NewShape(t.dims...), t.raw, ort.TensorElementDataType(t.kind))
	}
	// A shape without dims is refused: scalars have a type of their own.
	switch t.kind {
	case float32Kind:
		return ort.NewScalar(float32(t.numbers()[0]))
	case float64Kind:
		return ort.NewScalar(t.numbers()[0])
	case boolKind:
		return ort.NewScalar(t.raw[0] != 0)
	}
	return nil, fmt.Errorf("%s: onnxruntime_go has no scalars of %s", t.name, kinds[t.kind])
}

// What came out, copied.
func fromValue(name string, kind int, value ort.Value) (*tensor, error) {
	t := &tensor{name: name, kind: kind, dims: value.GetShape()}
	var buffer bytes.Buffer
	var err error
	switch v := value.(type) {
	case *ort.Tensor[float32]:
		err = binary.Write(&buffer, binary.LittleEndian, v.GetData())
	case *ort.Tensor[float64]:
		err = binary.Write(&buffer, binary.LittleEndian, v.GetData())
	case *ort.CustomDataTensor:
		buffer.Write(v.GetData())
	default:
		err = fmt.Errorf("%s is a %T", name, value)
	}
	t.raw = buffer.Bytes()
	return t, err
}

// A model file. A session of onnxruntime_go fixes the names it is fed, so one is made for each
// list of names: the first is the one that counts, others leave an optional input out.
type model struct {
	path            string
	inputs, outputs []ort.InputOutputInfo
	sessions        map[string]*ort.DynamicAdvancedSession
}

func openModel(path string) (*model, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	inputs, outputs, err := ort.GetInputOutputInfo(path)
	return &model{path, inputs, outputs, map[string]*ort.DynamicAdvancedSession{}}, err
}

func (m *model) close() {
	for _, session := range m.sessions {
		session.Destroy()
	}
}

func (m *model) has(name string) bool {
	for _, input := range m.inputs {
		if input.Name == name {
			return true
		}
	}
	return false
}

func (m *model) session(names []string) (*ort.DynamicAdvancedSession, error) {
	key := strings.Join(names, " ")
	if session, made := m.sessions[key]; made {
		return session, nil
	}
	var outputs []string
	for _, output := range m.outputs {
		outputs = append(outputs, output.Name)
	}
	session, err := ort.NewDynamicAdvancedSession(m.path, names, outputs, nil)
	if err == nil {
		m.sessions[key] = session
	}
	return session, err
}

// All outputs, in the order of the file.
func (m *model) run(names []string, feeds []ort.Value) ([]*tensor, error) {
	session, err := m.session(names)
	if err != nil {
		return nil, err
	}
	values := make([]ort.Value, len(m.outputs)) // nil: Run allocates it
	defer destroy(values)
	for i, output := range m.outputs {
		// Run takes the elements of 16-bit outputs for bytes, and fails: bring their buffer.
		if size := sizes[int(output.DataType)]; size == 2 {
			shape, err := outputShape(output.Name, names, feeds)
			if err != nil {
				return nil, err
			}
			buffer := make([]byte, shape.FlattenedSize()*2)
			if values[i], err = ort.NewCustomDataTensor(shape, buffer, output.DataType); err != nil {
				return nil, err
			}
		}
	}
	if err := session.Run(feeds, values); err != nil {
		return nil, err
	}
	results := make([]*tensor, len(values))
	for i, output := range m.outputs {
		if results[i], err = fromValue(output.Name, int(output.DataType), values[i]); err != nil {
			return nil, err
		}
	}
	return results, nil
}

// The query's shape, its last dim that of the values, or the number of keys for the scores.
func outputShape(output string, names []string, feeds []ort.Value) (ort.Shape, error) {
	var query, value ort.Shape
	for i, name := range names {
		if name == "query" {
			query = feeds[i].GetShape().Clone()
		} else if name == "value" {
			value = feeds[i].GetShape()
		}
	}
	if len(query) < 2 || len(value) < 2 {
		return nil, errors.New("query and value are missing")
	}
	last := value[len(value)-1]
	if output == "attention_scores" {
		last = value[len(value)-2]
	}
	query[len(query)-1] = last
	return query, nil
}

func destroy(values []ort.Value) {
	for _, value := range values {
		if value != nil {
			value.Destroy()
		}
	}
}

// Runs on the tensors of a test set.
func (m *model) runTensors(tensors []*tensor) ([]*tensor, error) {
	var names []string
	var feeds []ort.Value
	defer func() { destroy(feeds) }()
	for _, t := range tensors {
		value, err := t.value()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.name, err)
		}
		names, feeds = append(names, t.name), append(feeds, value)
	}
	return m.run(names, feeds)
}
