//! attention MODEL INPUTS OUTPUTS: runs one attention file, as docs/format.md says it is to be run.
//!
//! INPUTS holds, for each tensor given, NAME.shape (its dims as text, nothing for a scalar) and
//! NAME.bin (its values, little-endian, in the type the file asks for). OUTPUTS gets the same.

use std::error::Error;
use std::path::Path;
use std::{env, fs, process, slice};

use half::{bf16, f16};
use ort::logging::LogLevel;
use ort::session::Session;
use ort::value::{DynTensor, TensorElementType, ValueType};
use serde_json::Value as Json;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Input {
    name: String,
    optional: bool,
    kind: TensorElementType,
    dims: Vec<i64>, // -1 where the file leaves the size open
}

impl Input {
    fn new(name: &str, optional: bool, value: &ValueType) -> Result<Self> {
        let (Some(kind), Some(dims)) = (value.tensor_type(), value.tensor_shape()) else {
            return Err(format!("{name} is no tensor").into());
        };
        Ok(Self {
            name: name.into(),
            optional,
            kind,
            dims: dims.to_vec(),
        })
    }

    fn tensor(&self, session: &Session, dims: Vec<i64>, data: &[u8]) -> Result<DynTensor> {
        let bytes = self
            .kind
            .byte_size(dims.iter().product::<i64>() as usize)
            .unwrap_or(0);
        if data.len() != bytes {
            let (name, found) = (&self.name, data.len());
            return Err(
                format!("{name}.bin has {found} bytes, its shape and type take {bytes}").into(),
            );
        }
        let mut tensor = DynTensor::new(session.allocator(), self.kind, dims)?;
        if bytes > 0 {
            // SAFETY: the tensor has just been made with this many bytes of its own.
            unsafe { slice::from_raw_parts_mut(tensor.data_ptr_mut().cast(), bytes) }
                .copy_from_slice(data);
        }
        Ok(tensor)
    }

    fn read(&self, session: &Session, folder: &Path) -> Result<DynTensor> {
        let path = |suffix| folder.join(format!("{}.{suffix}", self.name));
        let words = fs::read_to_string(path("shape"))?;
        let dims = words
            .split_whitespace()
            .map(str::parse)
            .collect::<std::result::Result<_, _>>()?;
        let data = fs::read(path("bin")).map_err(|error| format!("{}.bin: {error}", self.name))?;
        self.tensor(session, dims, &data)
    }

    /// What stands for a required input that is not given.
    fn supply(&self, session: &Session, weights: &Json) -> Result<DynTensor> {
        let dims: Vec<i64> = self
            .dims
            .iter()
            .map(|&dim| if dim < 0 { 1 } else { dim })
            .collect();
        let bytes = self
            .kind
            .byte_size(dims.iter().product::<i64>() as usize)
            .unwrap_or(0);
        match self.name.as_str() {
            "query_mask" | "value_mask" => self.tensor(session, dims, &vec![1; bytes]),
            "bias" | "training" => self.tensor(session, dims, &vec![0; bytes]),
            "scale" | "concat_score_weight" => self.trained(session, &weights[&self.name]),
            name => Err(format!("{name} is required, but not in INPUTS").into()),
        }
    }

    /// A trained weight: metadata keep a number for a scalar, a list for `[dim]`.
    fn trained(&self, session: &Session, weight: &Json) -> Result<DynTensor> {
        let numbers = match weight {
            Json::Array(list) => list.iter().map(Json::as_f64).collect(),
            number => number.as_f64().map(|number| vec![number]),
        };
        let numbers: Vec<f64> = numbers
            .ok_or_else(|| format!("{} is neither given nor in onnx_attn.weights", self.name))?;
        let dims = vec![numbers.len() as i64; self.dims.len()];
        let bytes = |number: f64| match self.kind {
            TensorElementType::Float64 => number.to_le_bytes().to_vec(),
            TensorElementType::Float16 => f16::from_f64(number).to_le_bytes().to_vec(),
            TensorElementType::Bfloat16 => bf16::from_f64(number).to_le_bytes().to_vec(),
            _ => (number as f32).to_le_bytes().to_vec(),
        };
        self.tensor(
            session,
            dims,
            &numbers.into_iter().flat_map(bytes).collect::<Vec<u8>>(),
        )
    }
}

fn all_inputs(session: &Session) -> Result<Vec<Input>> {
    let required = session
        .inputs()
        .iter()
        .map(|input| Input::new(input.name(), false, input.dtype()));
    let optional = session.overridable_initializers();
    let optional = optional
        .iter()
        .map(|input| Input::new(input.name(), true, input.dtype()));
    required.chain(optional).collect()
}

/// A tensor under a name that the file does not have would be lost without a word.
fn refuse_strangers(folder: &Path, inputs: &[Input]) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        if !inputs.iter().any(|input| input.name == stem) {
            return Err(format!("the file has no input {stem}").into());
        }
    }
    Ok(())
}

fn consume(library: &str, model: &str, folder: &Path, outputs: &Path) -> Result<()> {
    let environment = ort::init_from(library)?.with_name("consumer").build()?;
    let mut session = Session::builder(&environment)?
        .with_log_level(LogLevel::Fatal)? // errors are returned
        .commit_from_file(model)?;
    let weights = match session.metadata()?.custom("onnx_attn.weights") {
        Some(text) => serde_json::from_str(&text)?,
        None => Json::Null,
    };

    let inputs = all_inputs(&session)?;
    refuse_strangers(folder, &inputs)?;
    let mut feed = Vec::new();
    for input in &inputs {
        let given = folder.join(format!("{}.shape", input.name)).exists();
        if given {
            feed.push((input.name.as_str(), input.read(&session, folder)?));
        } else if !input.optional {
            feed.push((input.name.as_str(), input.supply(&session, &weights)?));
        }
    }

    for (name, value) in session.run(feed)? {
        let tensor: DynTensor = value.downcast()?;
        let kind = *tensor.data_type();
        let bytes = kind
            .byte_size(tensor.shape().num_elements())
            .ok_or("an output of text")?;
        let data = match bytes {
            0 => &[],
            // SAFETY: the tensor lies in this process's memory and has this many bytes.
            _ => unsafe { slice::from_raw_parts(tensor.data_ptr().cast::<u8>(), bytes) },
        };
        fs::write(outputs.join(format!("{name}.bin")), data)?;
        let words: Vec<String> = tensor.shape().iter().map(i64::to_string).collect();
        fs::write(outputs.join(format!("{name}.shape")), words.join(" "))?;
    }
    Ok(())
}

fn run() -> Result<()> {
    let arguments: Vec<String> = env::args().collect();
    let [_, model, inputs, outputs] = arguments.as_slice() else {
        return Err("usage: attention MODEL INPUTS OUTPUTS".into());
    };
    let library =
        env::var("ORT_DYLIB_PATH").map_err(|_| "ORT_DYLIB_PATH: where is libonnxruntime.so?")?;
    consume(&library, model, Path::new(inputs), Path::new(outputs))
}

fn main() {
    if let Err(error) = run() {
        eprintln!("error: {}", error.to_string().replace('\n', " "));
        process::exit(1);
    }
}
