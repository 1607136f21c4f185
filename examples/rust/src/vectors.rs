//! Test vectors: TensorProto files, read and written without a protobuf library.

use std::{error::Error, fs, path::Path};

use ort::{
    memory::Allocator,
    value::{DynTensor, DynValue, TensorElementType},
};

pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

// The fields of message TensorProto in onnx.proto, and protobuf's wire types.
const DIMS: u64 = 1;
const DATA_TYPE: u64 = 2;
const NAME: u64 = 8;
const RAW_DATA: u64 = 9;
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// TensorProto.DataType of the types that attention files have.
const TYPES: [(u64, TensorElementType, &str); 5] = [
    (1, TensorElementType::Float32, "float32"),
    (9, TensorElementType::Bool, "bool"),
    (10, TensorElementType::Float16, "float16"),
    (11, TensorElementType::Float64, "float64"),
    (16, TensorElementType::Bfloat16, "bfloat16"),
];

/// A type's name, as NumPy has it.
pub fn name_of(kind: TensorElementType) -> &'static str {
    TYPES
        .iter()
        .find(|(_, each, _)| *each == kind)
        .map_or("another type", |(.., name)| name)
}

fn size_of(kind: TensorElementType) -> usize {
    kind.byte_size(1).unwrap_or(0)
}

/// A tensor as its file holds it: little-endian bytes.
pub struct Tensor {
    pub name: String,
    pub kind: TensorElementType,
    pub dims: Vec<i64>,
    pub data: Vec<u8>,
}

impl Tensor {
    /// Reads a file; the error names it.
    fn read(path: &Path) -> Result<Tensor> {
        let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Tensor::parse(&bytes).map_err(|error| format!("{}: {error}", path.display()).into())
    }

    fn parse(mut bytes: &[u8]) -> Result<Tensor> {
        let (mut name, mut dims, mut code, mut data) = (String::new(), Vec::new(), 0, Vec::new());
        while !bytes.is_empty() {
            let tag = varint(&mut bytes)?;
            let size = match tag & 7 {
                VARINT => {
                    let value = varint(&mut bytes)?;
                    match tag >> 3 {
                        DIMS => dims.push(i64::try_from(value)?),
                        DATA_TYPE => code = value,
                        _ => {}
                    }
                    continue;
                }
                FIXED64 => 8,
                FIXED32 => 4,
                BYTES => usize::try_from(varint(&mut bytes)?)?,
                _ => return Err(cut()),
            };
            let (mut content, rest) = bytes.split_at_checked(size).ok_or_else(cut)?;
            bytes = rest;
            match tag >> 3 {
                NAME => name = String::from_utf8(content.to_vec())?,
                RAW_DATA => data = content.to_vec(),
                DIMS => {
                    while !content.is_empty() {
                        dims.push(i64::try_from(varint(&mut content)?)?);
                    }
                }
                _ => {}
            }
        }
        let Some(&(_, kind, _)) = TYPES.iter().find(|(each, ..)| *each == code) else {
            return Err(format!("data type {code} is not one of an attention file").into());
        };
        let size = dims
            .iter()
            .try_fold(size_of(kind), |size, dim| size.checked_mul(*dim as usize));
        if size != Some(data.len()) {
            return Err("raw_data does not fit the dims".into());
        }
        Ok(Tensor {
            name,
            kind,
            dims,
            data,
        })
    }

    /// Writes a file; the error names it.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut bytes = Vec::new();
        for dim in &self.dims {
            put_varint(&mut bytes, DIMS << 3 | VARINT);
            put_varint(&mut bytes, *dim as u64);
        }
        let code = TYPES
            .iter()
            .find(|(_, kind, _)| *kind == self.kind)
            .map_or(0, |(code, ..)| *code);
        put_varint(&mut bytes, DATA_TYPE << 3 | VARINT);
        put_varint(&mut bytes, code);
        for (field, content) in [
            (NAME, self.name.as_bytes()),
            (RAW_DATA, self.data.as_slice()),
        ] {
            put_varint(&mut bytes, field << 3 | BYTES);
            put_varint(&mut bytes, content.len() as u64);
            bytes.extend_from_slice(content);
        }
        fs::write(path, bytes).map_err(|error| format!("{}: {error}", path.display()).into())
    }

    /// A value of ONNX Runtime, of whatever type. For a type known when you write the program,
    /// `ort::value::Tensor::from_array` does it without unsafe.
    pub fn to_value(&self) -> Result<DynValue> {
        let mut value = DynTensor::new(&Allocator::default(), self.kind, self.dims.clone())?;
        if !self.data.is_empty() {
            // SAFETY: the value was made for this type and these dims, on the CPU, and parse has
            // checked that the bytes are as many as they take.
            unsafe {
                let to = value.data_ptr_mut().cast::<u8>();
                std::ptr::copy_nonoverlapping(self.data.as_ptr(), to, self.data.len());
            }
        }
        Ok(value.into_dyn())
    }

    pub fn from_value(name: &str, value: &DynValue) -> Result<Tensor> {
        let value = value.view().downcast::<ort::value::DynTensorValueType>()?;
        let (kind, dims) = (*value.data_type(), value.shape().to_vec());
        let mut data = vec![0; value.shape().num_elements() * size_of(kind)];
        if !data.is_empty() {
            // SAFETY: results lie on the CPU, and hold as many bytes as type and dims take.
            unsafe {
                let from = value.data_ptr().cast::<u8>();
                std::ptr::copy_nonoverlapping(from, data.as_mut_ptr(), data.len());
            }
        }
        Ok(Tensor {
            name: name.into(),
            kind,
            dims,
            data,
        })
    }

    /// The elements as f64, exactly.
    pub fn numbers(&self) -> Vec<f64> {
        let chunks = self.data.chunks_exact(size_of(self.kind).max(1));
        match self.kind {
            TensorElementType::Float64 => chunks
                .map(|b| f64::from_le_bytes(b.try_into().unwrap()))
                .collect(),
            TensorElementType::Float32 => chunks
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()).into())
                .collect(),
            TensorElementType::Float16 => chunks
                .map(|b| half(u16::from_le_bytes(b.try_into().unwrap())))
                .collect(),
            // The upper half of a float32.
            TensorElementType::Bfloat16 => chunks
                .map(|b| f32::from_le_bytes([0, 0, b[0], b[1]]).into())
                .collect(),
            _ => chunks.map(|b| b[0].into()).collect(),
        }
    }
}

/// Every KIND_0.pb, KIND_1.pb, ... of a folder, at least one.
pub fn read_tensors(folder: &Path, kind: &str) -> Result<Vec<Tensor>> {
    let mut tensors = Vec::new();
    loop {
        let path = folder.join(format!("{kind}_{}.pb", tensors.len()));
        if !tensors.is_empty() && !path.exists() {
            return Ok(tensors);
        }
        tensors.push(Tensor::read(&path)?);
    }
}

fn cut() -> Box<dyn Error> {
    "no TensorProto, or cut short".into()
}

fn varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or_else(cut)?;
        *bytes = rest;
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Ok(value);
        }
    }
    Err(cut())
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value > 127 {
        bytes.push((value & 127) as u8 | 128);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// IEEE 754 binary16: 1 sign bit, 5 of exponent, 10 of fraction.
fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let size = match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction != 0.0 => f64::NAN,
        31 => f64::INFINITY,
        _ => (1024.0 + fraction) * 2f64.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -size } else { size }
}
