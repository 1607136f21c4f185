// Attention files in Go: run them, check them, read their errors.
//
//	attention FOLDER                      FOLDER/model.onnx: its test vectors, masks, errors
//	attention --catalogue MODELS          every model of a folder against its test vectors
//	attention MODEL SET OUT [SET OUT ...] the inputs SET/input_N.pb to OUT/output_N.pb
//	attention --version                   which ONNX Runtime runs
package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	ort "github.com/yalue/onnxruntime_go"
)

const usage = "usage: attention FOLDER | --catalogue MODELS | MODEL SET OUT [SET OUT ...] | --version"

func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}

// Test vectors.

type tolerance struct{ rtol, atol float64 }

// The tolerance that stands beside a model, in config.txt.
func readTolerance(folder string) (tolerance, error) {
	path := filepath.Join(folder, "config.txt")
	text, err := os.ReadFile(path)
	if err != nil {
		return tolerance{}, err
	}
	found := map[string]float64{}
	for _, line := range strings.Split(string(text), "\n") {
		if key, value, ok := strings.Cut(line, ": "); ok {
			if number, err := strconv.ParseFloat(value, 64); err == nil {
				found[key] = number
			}
		}
	}
	rtol, one := found["relative_per_sample_tolerance"]
	atol, other := found["per_sample_tolerance"]
	if !one || !other {
		return tolerance{}, fmt.Errorf("%s does not state both tolerances", path)
	}
	return tolerance{rtol, atol}, nil
}

type checked struct {
	largest float64
	fine    bool
}

func compare(got, wanted *tensor, within tolerance, result *checked) error {
	if got.kind != wanted.kind || fmt.Sprint(got.dims) != fmt.Sprint(wanted.dims) {
		return fmt.Errorf("%s is %s%v; expected %s%v", wanted.name, kinds[got.kind], got.dims,
			kinds[wanted.kind], wanted.dims)
	}
	a, b := got.numbers(), wanted.numbers()
	for i := range b {
		difference := math.Abs(a[i] - b[i])
		if a[i] == b[i] || math.IsNaN(a[i]) && math.IsNaN(b[i]) {
			difference = 0
		} else if math.IsNaN(difference) {
			difference = math.Inf(1)
		}
		result.largest = math.Max(result.largest, difference)
		result.fine = result.fine && difference <= within.atol+within.rtol*math.Abs(b[i])
	}
	return nil
}

func checkSet(m *model, set string, within tolerance) (checked, error) {
	result := checked{fine: true}
	inputs, err := readTensors(set, "input")
	if err != nil {
		return result, err
	}
	expected, err := readTensors(set, "output")
	if err != nil {
		return result, err
	}
	outputs, err := m.runTensors(inputs)
	if err != nil {
		return result, err
	}
	if len(outputs) != len(expected) {
		return result, fmt.Errorf("%d outputs, expected %d", len(outputs), len(expected))
	}
	for i, wanted := range expected {
		if err := compare(outputs[i], wanted, within, &result); err != nil {
			return result, err
		}
	}
	return result, nil
}

// Every test_data_set_K of a model.
func checkSets(m *model, folder string) ([]checked, error) {
	within, err := readTolerance(folder)
	if err != nil {
		return nil, err
	}
	var sets []checked
	for {
		set := filepath.Join(folder, fmt.Sprintf("test_data_set_%d", len(sets)))
		if _, err := os.Stat(set); err != nil {
			break
		}
		result, err := checkSet(m, set, within)
		if err != nil {
			return nil, err
		}
		sets = append(sets, result)
	}
	if len(sets) == 0 {
		return nil, errors.New("there is no test_data_set_0 beside the model")
	}
	return sets, nil
}

func checkModel(folder string) ([]checked, error) {
	m, err := openModel(filepath.Join(folder, "model.onnx"))
	if err != nil {
		return nil, err
	}
	defer m.close()
	return checkSets(m, folder)
}

// Every model in a folder; whether all are within tolerance.
func catalogue(models string) (bool, error) {
	paths, err := filepath.Glob(filepath.Join(models, "*", "model.onnx"))
	if err != nil {
		return false, err
	}
	if len(paths) == 0 {
		return false, fmt.Errorf("%s holds no folder with a model.onnx", models)
	}
	sort.Strings(paths)
	fmt.Println("ONNX Runtime", ort.GetVersion())
	fine := true
	for _, path := range paths {
		folder := filepath.Dir(path)
		sets, err := checkModel(folder)
		if err != nil {
			fmt.Printf("  %-22s failed: %s\n", filepath.Base(folder), oneLine(err))
			fine = false
			continue
		}
		verdict, largest := "ok", 0.0
		for _, set := range sets {
			largest = math.Max(largest, set.largest)
			if !set.fine {
				verdict, fine = "error too large", false
			}
		}
		fmt.Printf("  %-22s %-17s %d sets, largest error %.1e\n", filepath.Base(folder), verdict,
			len(sets), largest)
	}
	return fine, nil
}

// Inputs of a folder to outputs of another, by pairs.
func runSets(path string, folders []string) error {
	m, err := openModel(path)
	if err != nil {
		return err
	}
	defer m.close()
	for i := 0; i < len(folders); i += 2 {
		inputs, err := readTensors(folders[i], "input")
		if err != nil {
			return err
		}
		outputs, err := m.runTensors(inputs)
		if err != nil {
			return err
		}
		for n, output := range outputs {
			if err := output.write(filepath.Join(folders[i+1], fmt.Sprintf("output_%d.pb", n))); err != nil {
				return err
			}
		}
	}
	return nil
}

// One model, shown.

func shown(title string, ports []ort.InputOutputInfo) {
	texts := make([]string, len(ports))
	for i, port := range ports {
		dims := make([]string, len(port.Dimensions))
		for d, dim := range port.Dimensions {
			dims[d] = "free" // its name is not handed out
			if dim >= 0 {
				dims[d] = strconv.FormatInt(dim, 10)
			}
		}
		texts[i] = fmt.Sprintf("%s %s[%s]", port.Name, kinds[int(port.DataType)], strings.Join(dims, ", "))
	}
	fmt.Printf("  %s: %s\n", title, strings.Join(texts, "; "))
}

// Values by name, as a program feeds them.
type feeds map[string]ort.Value

func (f feeds) with(name string, value ort.Value) feeds {
	changed := feeds{}
	for key, each := range f {
		changed[key] = each
	}
	changed[name] = value
	return changed
}

func (f feeds) without(name string) feeds {
	changed := f.with(name, nil)
	delete(changed, name)
	return changed
}

func (m *model) runFeeds(f feeds) ([]*tensor, error) {
	var names []string
	for name := range f {
		names = append(names, name)
	}
	sort.Strings(names)
	values := make([]ort.Value, len(names))
	for i, name := range names {
		values[i] = f[name]
	}
	return m.run(names, values)
}

func (m *model) show(title string, f feeds) error {
	results, err := m.runFeeds(f)
	if err != nil {
		return err
	}
	var numbers, dims []string
	for _, number := range results[0].numbers() {
		numbers = append(numbers, fmt.Sprintf("%.4f", number))
	}
	for _, dim := range results[0].dims {
		dims = append(dims, strconv.FormatInt(dim, 10))
	}
	fmt.Printf("  %-36s output [%s]: %s\n", title, strings.Join(dims, ", "), strings.Join(numbers, " "))
	return nil
}

// Whether there is an error; prints it.
func refused(title string, err error) bool {
	if err == nil {
		fmt.Printf("  %s: NOT REFUSED\n", title)
		return false
	}
	fmt.Printf("  %s: %s\n", title, oneLine(err))
	return true
}

// Values that the demonstration makes, so that all are freed at its end.
type made struct {
	values []ort.Value
	err    error
}

func keep[T ort.Value](m *made, value T, err error) T {
	if err != nil {
		m.err = err
	} else {
		m.values = append(m.values, value)
	}
	return value
}

// The demonstration feeds float32 of rank 3 and knows these names: its dim, 0 if it cannot be shown.
func shownDim(m *model) int64 {
	known := " query value key query_mask value_mask training scale concat_score_weight "
	for _, input := range m.inputs {
		if !strings.Contains(known, " "+input.Name+" ") {
			return 0
		}
	}
	query := m.inputs[0]
	if int(query.DataType) != float32Kind || len(query.Dimensions) != 3 ||
		query.Dimensions[0] >= 0 || query.Dimensions[1] >= 0 {
		return 0
	}
	if dim := query.Dimensions[2]; dim >= 0 {
		return dim
	}
	return 8 // suits models/additive as well
}

func demonstrate(m *model, dim int64) (bool, error) {
	var all made
	defer func() { destroy(all.values) }()
	floats := func(length, dim int64, data []float32) ort.Value {
		value, err := ort.NewTensor(ort.NewShape(1, length, dim), data)
		return keep(&all, value, err)
	}
	mask := func(flags ...bool) ort.Value {
		value, err := ort.NewTensor(ort.NewShape(1, int64(len(flags))), flags)
		return keep(&all, value, err)
	}
	number := func(data float32) ort.Value {
		value, err := ort.NewScalar(data)
		return keep(&all, value, err)
	}
	flag := func(data bool) ort.Value {
		value, err := ort.NewScalar(data)
		return keep(&all, value, err)
	}

	// Two queries look at three keys; the values are easy to tell apart.
	query, key := make([]float32, 2*dim), make([]float32, 3*dim)
	query[0], query[dim+1] = 2, 2
	key[0], key[dim+1], key[2*dim], key[2*dim+1] = 1, 1, 1, 1
	given := feeds{"query": floats(2, dim, query), "value": floats(3, dim, key)}
	if m.has("key") {
		given["key"] = given["value"]
		given["value"] = floats(3, 1, []float32{10, 20, 30})
	}
	// A mask of shape [1, 1] that holds true is no mask.
	defaults := map[string]ort.Value{"query_mask": mask(true), "value_mask": mask(true),
		"scale": number(1), "concat_score_weight": number(1), "training": flag(false)}
	for name, value := range defaults {
		if m.has(name) {
			given[name] = value
		}
	}
	changes := []struct {
		title, name string
		value       ort.Value
	}{
		{"value_mask [[true, true, false]]", "value_mask", mask(true, true, false)},
		{"query_mask [[true, false]]", "query_mask", mask(true, false)},
		{"scale 0.5", "scale", number(0.5)},
		{"training true", "training", flag(true)},
	}
	double, err := ort.NewTensor(ort.NewShape(1, 2, dim), make([]float64, 2*dim))
	keep(&all, double, err)
	if all.err != nil {
		return false, all.err
	}

	fmt.Println("\nMasks and scalars")
	if err := m.show("no mask: value_mask [[true]]", given); err != nil {
		return false, err
	}
	for _, change := range changes {
		if m.has(change.name) {
			if err := m.show(change.title, given.with(change.name, change.value)); err != nil {
				return false, err
			}
		}
	}

	fmt.Println("\nBad input")
	run := func(f feeds) error {
		_, err := m.runFeeds(f)
		return err
	}
	good := refused("no value", run(given.without("value")))
	good = refused("float64 query", run(given.with("query", double))) && good
	if m.has("value_mask") {
		good = refused("mask of 2 for 3 values", run(given.with("value_mask", mask(true, false)))) && good
	}
	if m.has("key") {
		good = refused("3 keys, 2 values", run(given.with("value", floats(2, 1, []float32{10, 20})))) && good
	}
	whole, err := os.ReadFile(m.path)
	if err != nil {
		return false, err
	}
	_, _, err = ort.GetInputOutputInfoWithONNXData(whole[:len(whole)/2])
	good = refused("a file cut in half", err) && good
	_, err = openModel("no_such_model.onnx")
	good = refused("a file that is not there", err) && good

	fmt.Println("\nAnd on it goes")
	return good, m.show("no mask, as before", given)
}

// All of the above for the model in a folder; whether every check held.
func oneModel(folder string) (bool, error) {
	m, err := openModel(filepath.Join(folder, "model.onnx"))
	if err != nil {
		return false, err
	}
	defer m.close()
	fmt.Println(folder)
	shown("inputs", m.inputs)
	shown("outputs", m.outputs)
	fmt.Println("\nTest vectors")
	sets, err := checkSets(m, folder)
	if err != nil {
		return false, err
	}
	fine := true
	for n, set := range sets {
		verdict := "ok"
		if !set.fine {
			verdict, fine = "TOO LARGE", false
		}
		fmt.Printf("  test_data_set_%d  largest error %.1e  %s\n", n, set.largest, verdict)
	}
	dim := shownDim(m)
	if dim < 2 {
		fmt.Println("\nNo demonstration: it feeds float32 [1, 2, dim]")
		return fine, nil
	}
	good, err := demonstrate(m, dim)
	return good && fine, err
}

func do(arguments []string) (bool, error) {
	if err := openRuntime(); err != nil {
		return false, err
	}
	defer ort.DestroyEnvironment()
	switch {
	case arguments[0] == "--version":
		fmt.Println("ONNX Runtime", ort.GetVersion())
		return true, nil
	case arguments[0] == "--catalogue":
		return catalogue(arguments[1])
	case len(arguments) == 1:
		return oneModel(arguments[0])
	}
	return true, runSets(arguments[0], arguments[1:])
}

func main() {
	arguments := os.Args[1:]
	count, option := len(arguments), len(arguments) > 0 && strings.HasPrefix(arguments[0], "-")
	known := count == 1 && arguments[0] == "--version" || count == 2 && arguments[0] == "--catalogue"
	if !known && (option || count%2 == 0) {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	fine, err := do(arguments)
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", oneLine(err))
	}
	if err != nil || !fine {
		os.Exit(1)
	}
}
