//! Headers of safetensors files: the input is the JSON part of one.
//!
//! What is accepted, the `safetensors` library accepts and understands in the same way, it keeps
//! to the limits, and what we write of it reads back the same.

use std::collections::HashMap;

use lingconv_core::header::{self, Entry, Header, MAX_NAME, MAX_RANK, MAX_TENSORS, PREFIX};
use safetensors::SafeTensors;
use safetensors::tensor::Metadata;

use crate::sound;

/// Most bytes of data for which a whole file is made.
const MAX_DATA: u64 = 1 << 16;

/// Checks one input.
///
/// # Panics
/// If a law does not hold.
pub fn check(data: &[u8]) {
    // Some length that is not the one asked for: the ranges must not be believed.
    let other = data.len() as u64 % 64;
    let declared = Header::declared_length(data);
    let refused = sound(Header::parse(data, other)).is_none();
    assert!(refused || declared == Some(other), "{declared:?} bytes fit {other}");
    let Some(length) = declared else { return };
    let Some(parsed) = sound(Header::parse(data, length)) else {
        panic!("a header is refused for the {length} bytes that it asks for")
    };
    check_limits(&parsed);
    check_library(data, length, &parsed);
    check_round_trip(&parsed);
}

fn check_limits(parsed: &Header) {
    assert!(parsed.tensors.len() <= MAX_TENSORS);
    let mut position = 0;
    for tensor in &parsed.tensors {
        assert!(tensor.name.len() <= MAX_NAME && tensor.shape.len() <= MAX_RANK);
        assert_eq!(tensor.begin, position, "{} does not follow", tensor.name);
        assert_eq!(tensor.dtype.byte_len(&tensor.shape), Some(tensor.bytes()));
        position = tensor.end;
    }
}

/// Never accept what the library rejects.
fn check_library(json: &[u8], length: u64, parsed: &Header) {
    if length > MAX_DATA {
        let read = serde_json::from_slice::<Metadata>(json);
        assert!(read.is_ok(), "the library refuses it: {read:?}");
        return;
    }
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json);
    file.resize(file.len() + length as usize, 0);
    let read = match SafeTensors::deserialize(&file) {
        Ok(read) => read,
        Err(error) => panic!("the library refuses it: {error}"),
    };
    assert_eq!(read.len(), parsed.tensors.len());
    let ours: HashMap<&str, &Entry> = parsed.tensors.iter().map(|t| (&*t.name, t)).collect();
    for (name, view) in read.iter() {
        let Some(tensor) = ours.get(name) else { panic!("the library alone knows {name}") };
        let shape: Vec<u64> = view.shape().iter().map(|dim| *dim as u64).collect();
        assert_eq!(*tensor.shape, *shape, "{name}");
        assert_eq!(tensor.dtype.to_string(), view.dtype().to_string(), "{name}");
        assert_eq!(tensor.bytes(), view.data().len() as u64, "{name}");
    }
}

fn check_round_trip(parsed: &Header) {
    let mut tensors = parsed.tensors.clone();
    let (Some(length), Some(bytes)) =
        (sound(header::lay_out(&mut tensors)), sound(header::encode(&tensors)))
    else {
        return;
    };
    let again = sound(Header::parse(&bytes[PREFIX as usize..], length));
    assert_eq!(again.map(|header| header.tensors), Some(tensors));
}
