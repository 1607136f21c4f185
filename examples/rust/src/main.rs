//! Attention files in Rust: run them, check them, read their errors.
//!
//! ```text
//! attention FOLDER                      FOLDER/model.onnx: its test vectors, masks, errors
//! attention --catalogue MODELS          every model of a folder against its test vectors
//! attention MODEL SET OUT [SET OUT ...] the inputs SET/input_N.pb to OUT/output_N.pb
//! attention --version                   which ONNX Runtime runs
//! ```

mod vectors;

use std::{env, ffi::CStr, fs, path::Path, process::ExitCode};

use ort::{
    environment::Environment,
    logging::LogLevel,
    session::{Session, SessionInputValue},
    value::{DynValue, Tensor as Value, ValueType},
};
use vectors::{Result, Tensor, name_of, read_tensors};

const USAGE: &str =
    "usage: attention FOLDER | --catalogue MODELS | MODEL SET OUT [SET OUT ...] | --version";

fn library() -> Result<String> {
    Ok(env::var("ORT_DYLIB_PATH")
        .map_err(|_| "set ORT_DYLIB_PATH to the path of ONNX Runtime's library")?)
}

/// ONNX Runtime out of the library that ORT_DYLIB_PATH names.
fn environment() -> Result<Environment> {
    let environment = ort::init_from(library()?)?.with_name("attention").build()?;
    // Errors come back as values: without this they are logged as well.
    environment.set_log_level(LogLevel::Fatal);
    Ok(environment)
}

/// The library's version, which ort does not hand out: asked of the library itself.
fn version() -> Result<String> {
    // SAFETY: these are the types of onnxruntime_c_api.h; the string is static.
    unsafe {
        let library = libloading::Library::new(library()?)?;
        let base: libloading::Symbol<unsafe extern "C" fn() -> *const ort::sys::OrtApiBase> =
            library.get(b"OrtGetApiBase")?;
        let text = CStr::from_ptr(((*base()).GetVersionString)());
        Ok(text.to_string_lossy().into())
    }
}

/// Tensors by the names of the file.
type Feeds = Vec<(String, DynValue)>;

/// Runs a session; `run` takes it mutably, so one that serves many threads wants a lock or a pool.
fn run(session: &mut Session, feeds: &Feeds) -> Result<Vec<Tensor>> {
    let feeds: Vec<(&str, SessionInputValue)> = feeds
        .iter()
        .map(|(name, value)| (name.as_str(), value.into()))
        .collect();
    let outputs = session.run(feeds)?;
    outputs
        .iter()
        .map(|(name, value)| Tensor::from_value(name, &value))
        .collect()
}

fn to_feeds(tensors: &[Tensor]) -> Result<Feeds> {
    tensors
        .iter()
        .map(|tensor| Ok((tensor.name.clone(), tensor.to_value()?)))
        .collect()
}

fn one_line(error: impl ToString) -> String {
    error
        .to_string()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

// Test vectors.

struct Tolerance {
    rtol: f64,
    atol: f64,
}

/// The tolerance that stands beside a model, in config.txt.
fn read_tolerance(folder: &Path) -> Result<Tolerance> {
    let path = folder.join("config.txt");
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let value = |wanted: &str| -> Result<f64> {
        let found = text
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(key, _)| *key == wanted);
        Ok(found
            .ok_or(format!("{} has no {wanted}", path.display()))?
            .1
            .parse()?)
    };
    Ok(Tolerance {
        rtol: value("relative_per_sample_tolerance")?,
        atol: value("per_sample_tolerance")?,
    })
}

/// The largest error, and whether every number is near enough.
fn compare(got: &Tensor, wanted: &Tensor, tolerance: &Tolerance) -> Result<(f64, bool)> {
    if got.kind != wanted.kind || got.dims != wanted.dims {
        return Err(format!("{} has another type or shape than expected", wanted.name).into());
    }
    let (mut largest, mut fine) = (0f64, true);
    for (a, b) in got.numbers().into_iter().zip(wanted.numbers()) {
        let error = match a == b || (a.is_nan() && b.is_nan()) {
            true => 0.0,
            false if (a - b).is_nan() => f64::INFINITY,
            false => (a - b).abs(),
        };
        largest = largest.max(error);
        fine &= error <= tolerance.atol + tolerance.rtol * b.abs();
    }
    Ok((largest, fine))
}

/// Every test_data_set_K of a model: the largest error of each, and whether it is fine.
fn check_sets(session: &mut Session, folder: &Path) -> Result<Vec<(f64, bool)>> {
    let tolerance = read_tolerance(folder)?;
    let mut checked = Vec::new();
    loop {
        let set = folder.join(format!("test_data_set_{}", checked.len()));
        if !set.is_dir() {
            break;
        }
        let results = run(session, &to_feeds(&read_tensors(&set, "input")?)?)?;
        let (mut largest, mut fine) = (0f64, true);
        for wanted in read_tensors(&set, "output")? {
            let got = results.iter().find(|result| result.name == wanted.name);
            let got = got.ok_or(format!("{} did not come out", wanted.name))?;
            let (error, good) = compare(got, &wanted, &tolerance)?;
            (largest, fine) = (largest.max(error), fine && good);
        }
        checked.push((largest, fine));
    }
    if checked.is_empty() {
        return Err("there is no test_data_set_0 beside the model".into());
    }
    Ok(checked)
}

fn scientific(number: f64) -> String {
    // As C writes it: 2.4e-07.
    let text = format!("{number:.1e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    format!(
        "{digits}e{}{:02}",
        if exponent < 0 { '-' } else { '+' },
        exponent.abs()
    )
}

fn open(environment: &Environment, path: &Path) -> Result<Session> {
    Ok(Session::builder(environment)?.commit_from_file(path)?)
}

/// Every model in `models`; whether all are within tolerance.
fn catalogue(environment: &Environment, models: &Path) -> Result<bool> {
    let entries = fs::read_dir(models).map_err(|error| format!("{}: {error}", models.display()))?;
    let mut folders: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|folder| folder.join("model.onnx").is_file())
        .collect();
    folders.sort();
    if folders.is_empty() {
        return Err(format!("{} holds no folder with a model.onnx", models.display()).into());
    }
    println!("ONNX Runtime {}", version()?);
    let mut fine = true;
    for folder in folders {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let checked = open(environment, &folder.join("model.onnx"))
            .and_then(|mut session| check_sets(&mut session, &folder));
        match checked {
            Ok(sets) => {
                let good = sets.iter().all(|(_, good)| *good);
                let largest = sets
                    .iter()
                    .fold(0f64, |largest, (error, _)| largest.max(*error));
                let verdict = if good { "ok" } else { "error too large" };
                println!(
                    "  {name:22} {verdict:17} {} sets, largest error {}",
                    sets.len(),
                    scientific(largest)
                );
                fine &= good;
            }
            Err(error) => {
                println!("  {name:22} failed: {}", one_line(error));
                fine = false;
            }
        }
    }
    Ok(fine)
}

/// Inputs of a folder to outputs of another, by pairs.
fn run_sets(environment: &Environment, model: &Path, folders: &[String]) -> Result<bool> {
    let mut session = open(environment, model)?;
    for pair in folders.chunks_exact(2) {
        let results = run(
            &mut session,
            &to_feeds(&read_tensors(Path::new(&pair[0]), "input")?)?,
        )?;
        for (number, result) in results.iter().enumerate() {
            result.write(&Path::new(&pair[1]).join(format!("output_{number}.pb")))?;
        }
    }
    Ok(true)
}

// One model, shown.

/// Where the file leaves the dim free; 8 suits models/additive as well.
const FREE_DIM: usize = 8;

/// Name and type of every input, those that may be left out last.
fn inputs_of(session: &Session) -> Vec<(String, ValueType)> {
    let plain = session
        .inputs()
        .iter()
        .map(|input| (input.name().to_string(), input.dtype().clone()));
    let optional = session.overridable_initializers();
    let optional = optional
        .iter()
        .map(|input| (input.name().to_string(), input.dtype().clone()));
    plain.chain(optional).collect()
}

fn shown(name: &str, dtype: &ValueType) -> String {
    let ValueType::Tensor {
        ty,
        shape,
        dimension_symbols,
    } = dtype
    else {
        return format!("{name} is no tensor");
    };
    let dims: Vec<String> = shape
        .iter()
        .zip(dimension_symbols.iter())
        .map(|(dim, symbol)| {
            if *dim < 0 {
                symbol.to_string()
            } else {
                dim.to_string()
            }
        })
        .collect();
    format!("{name} {}[{}]", name_of(*ty), dims.join(", "))
}

fn show(session: &mut Session, title: &str, feeds: &Feeds) -> Result<()> {
    let output = run(session, feeds)?.swap_remove(0);
    let numbers: Vec<String> = output
        .numbers()
        .iter()
        .map(|number| format!("{number:.4}"))
        .collect();
    println!(
        "  {title:36} output {:?}: {}",
        output.dims,
        numbers.join(" ")
    );
    Ok(())
}

/// Whether `attempt` fails; prints what the runtime says.
fn refused<T>(title: &str, attempt: Result<T>) -> bool {
    match attempt {
        Ok(_) => println!("  {title}: NOT REFUSED"),
        Err(error) => {
            println!("  {title}: {}", one_line(error));
            return true;
        }
    }
    false
}

fn with(mut feeds: Feeds, name: &str, value: DynValue) -> Feeds {
    for feed in &mut feeds {
        if feed.0 == name {
            feed.1 = value;
            break;
        }
    }
    feeds
}

/// The demonstration feeds float32 of rank 3 and knows these names: its dim, if it can be shown.
fn shown_dim(inputs: &[(String, ValueType)]) -> Option<usize> {
    let known = [
        "query",
        "value",
        "key",
        "query_mask",
        "value_mask",
        "training",
        "scale",
        "concat_score_weight",
    ];
    if !inputs
        .iter()
        .all(|(name, _)| known.contains(&name.as_str()))
    {
        return None;
    }
    let (kind, shape) = (inputs[0].1.tensor_type()?, inputs[0].1.tensor_shape()?);
    match shape[..] {
        [-1, -1, dim] if name_of(kind) == "float32" => {
            Some(usize::try_from(dim).unwrap_or(FREE_DIM))
        }
        _ => None,
    }
}

fn demonstrate(
    environment: &Environment,
    session: &mut Session,
    path: &Path,
    dim: usize,
) -> Result<bool> {
    let names: Vec<String> = inputs_of(session)
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    let has = |name: &str| names.iter().any(|each| each == name);

    // Two queries look at three keys; the values are easy to tell apart.
    let (mut query, mut key) = (vec![0f32; 2 * dim], vec![0f32; 3 * dim]);
    (query[0], query[dim + 1]) = (2.0, 2.0);
    for at in [0, dim + 1, 2 * dim, 2 * dim + 1] {
        key[at] = 1.0;
    }
    let floats = |shape: [usize; 3], data: &[f32]| Value::from_array((shape, data.to_vec()));
    let mask = |flags: &[bool]| Value::from_array(([1, flags.len()], flags.to_vec()));
    let scalar: [usize; 0] = []; // the shape of a scalar
    let feeds = || -> Result<Feeds> {
        let mut feeds = vec![("query".to_string(), floats([1, 2, dim], &query)?.into_dyn())];
        let key = floats([1, 3, dim], &key)?.into_dyn();
        if has("key") {
            feeds.push((
                "value".into(),
                floats([1, 3, 1], &[10.0, 20.0, 30.0])?.into_dyn(),
            ));
            feeds.push(("key".into(), key));
        } else {
            feeds.push(("value".into(), key));
        }
        for name in &names {
            match name.as_str() {
                // A mask of shape [1, 1] that holds true is no mask.
                "query_mask" | "value_mask" => {
                    feeds.push((name.clone(), mask(&[true])?.into_dyn()))
                }
                "scale" | "concat_score_weight" => {
                    feeds.push((
                        name.clone(),
                        Value::from_array((scalar, vec![1f32]))?.into_dyn(),
                    ));
                }
                "training" => feeds.push((
                    name.clone(),
                    Value::from_array((scalar, vec![false]))?.into_dyn(),
                )),
                _ => {}
            }
        }
        Ok(feeds)
    };

    println!("\nMasks and scalars");
    show(session, "no mask: value_mask [[true]]", &feeds()?)?;
    if has("value_mask") {
        let visible = mask(&[true, true, false])?.into_dyn();
        show(
            session,
            "value_mask [[true, true, false]]",
            &with(feeds()?, "value_mask", visible),
        )?;
    }
    if has("query_mask") {
        let asked = mask(&[true, false])?.into_dyn();
        show(
            session,
            "query_mask [[true, false]]",
            &with(feeds()?, "query_mask", asked),
        )?;
    }
    if has("scale") {
        let half = Value::from_array((scalar, vec![0.5f32]))?.into_dyn();
        show(session, "scale 0.5", &with(feeds()?, "scale", half))?;
    }
    if has("training") {
        let drop = Value::from_array((scalar, vec![true]))?.into_dyn();
        show(session, "training true", &with(feeds()?, "training", drop))?;
    }

    println!("\nBad input");
    let mut without = feeds()?;
    without.retain(|(name, _)| name != "value");
    let mut all = refused("no value", run(session, &without));
    let double = Value::from_array(([1, 2, dim], vec![0f64; 2 * dim]))?.into_dyn();
    all &= refused(
        "float64 query",
        run(session, &with(feeds()?, "query", double)),
    );
    if has("value_mask") {
        let short = mask(&[true, false])?.into_dyn();
        all &= refused(
            "mask of 2 for 3 values",
            run(session, &with(feeds()?, "value_mask", short)),
        );
    }
    if has("key") {
        let short = floats([1, 2, 1], &[10.0, 20.0])?.into_dyn();
        all &= refused(
            "3 keys, 2 values",
            run(session, &with(feeds()?, "value", short)),
        );
    }
    let whole = fs::read(path)?;
    let cut = Session::builder(environment)?.commit_from_memory(&whole[..whole.len() / 2]);
    all &= refused("a file cut in half", cut.map_err(Into::into));
    all &= refused(
        "a file that is not there",
        open(environment, Path::new("no_such_model.onnx")),
    );

    println!("\nAnd on it goes");
    show(session, "no mask, as before", &feeds()?)?;
    Ok(all)
}

/// All of the above for the model in `folder`; whether every check held.
fn one_model(environment: &Environment, folder: &Path) -> Result<bool> {
    let path = folder.join("model.onnx");
    let mut session = open(environment, &path)?;
    println!("{}", folder.display());
    let inputs = inputs_of(&session);
    let all = |ports: Vec<String>| ports.join("; ");
    println!(
        "  inputs: {}",
        all(inputs
            .iter()
            .map(|(name, dtype)| shown(name, dtype))
            .collect())
    );
    println!(
        "  outputs: {}",
        all(session
            .outputs()
            .iter()
            .map(|port| shown(port.name(), port.dtype()))
            .collect())
    );

    println!("\nTest vectors");
    let checked = check_sets(&mut session, folder)?;
    for (number, (error, good)) in checked.iter().enumerate() {
        let verdict = if *good { "ok" } else { "TOO LARGE" };
        println!(
            "  test_data_set_{number}  largest error {}  {verdict}",
            scientific(*error)
        );
    }
    let fine = checked.iter().all(|(_, good)| *good);
    match shown_dim(&inputs) {
        Some(dim) => Ok(demonstrate(environment, &mut session, &path, dim)? && fine),
        None => {
            println!("\nNo demonstration: it feeds float32 [1, 2, dim]");
            Ok(fine)
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["--version"] => environment().and_then(|_environment| {
            println!("ONNX Runtime {}", version()?);
            Ok(true)
        }),
        ["--catalogue", models] => {
            environment().and_then(|environment| catalogue(&environment, models.as_ref()))
        }
        [folder] if !folder.starts_with('-') => {
            environment().and_then(|environment| one_model(&environment, folder.as_ref()))
        }
        [model, _, _, ..] if words.len() % 2 == 1 => environment()
            .and_then(|environment| run_sets(&environment, model.as_ref(), &arguments[1..])),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {}", one_line(error));
            ExitCode::FAILURE
        }
    }
}
