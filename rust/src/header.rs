//! The safetensors header: a strict reader and the writer of our own files.
//!
//! A file is `u64` little-endian header length, a JSON object, then the data of all tensors
//! without holes. The reader refuses everything that two readers could understand differently:
//! duplicate keys, gaps, overlaps, unknown fields, sizes that disagree with shapes. It never
//! accepts what the `safetensors` library rejects, and its memory is bounded by the limits below,
//! because headers come from the internet.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::allowance::Allowance;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::json::{self, Count};

/// Bytes of the length prefix.
pub const PREFIX: u64 = 8;
/// Longest header that is read, in bytes; the library's own limit.
pub const MAX_HEADER: u64 = 100_000_000;
/// Most tensors of headers that are kept beside one another, and so of one.
pub const MAX_TENSORS: usize = 1_000_000;
/// Longest string of a header: values of metadata may be texts.
const MAX_STRING: usize = 4 << 20;
/// Most entries of `__metadata__`.
const MAX_METADATA: usize = 100_000;
/// Highest number of dimensions.
pub const MAX_RANK: usize = 8;
/// Longest tensor name in bytes.
pub const MAX_NAME: usize = 1_024;
/// Data of files we write starts at a multiple of this, so that direct I/O needs no copy.
pub const DATA_ALIGNMENT: u64 = 4_096;

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Full name; shared, since what is copied keeps it.
    pub name: Arc<str>,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, row-major; empty for a scalar.
    pub shape: Box<[u64]>,
    /// First byte, relative to the start of the data.
    pub begin: u64,
    /// One past the last byte, relative to the start of the data.
    pub end: u64,
}

impl Entry {
    /// Bytes of data.
    pub fn bytes(&self) -> u64 {
        self.end - self.begin
    }
}

/// A checked header.
#[derive(Debug, Clone, Default)]
pub struct Header {
    /// Tensors in the order of their data.
    pub tensors: Vec<Entry>,
    /// `__metadata__`, in the order of the file.
    pub metadata: Vec<(String, String)>,
    /// Oddities that are legal, for `inspect` and `verify`.
    pub warnings: Vec<String>,
    /// What is larger than we take, and no fault of the header.
    beyond: Option<Error>,
    /// End of the last byte that any tensor asks for, those that were not taken included.
    reach: u64,
}

/// Length of the JSON part, from the first eight bytes of a file of `file_len` bytes.
pub fn json_length(prefix: [u8; 8], file_len: u64) -> Result<u64> {
    let length = u64::from_le_bytes(prefix);
    if length > MAX_HEADER {
        return Err(Error::invalid(format!(
            "header length {length} is above the limit of {MAX_HEADER} bytes"
        ))
        .hint("this is no safetensors file, or its first bytes are damaged; download it again"));
    }
    if length < 2 || length > file_len.saturating_sub(PREFIX) {
        return Err(Error::invalid(format!(
            "header length {length} does not fit a file of {file_len} bytes"
        ))
        .hint("the file is truncated; download it again"));
    }
    Ok(length)
}

impl Header {
    /// Parses and checks the JSON part `json` of a file that holds `data_len` bytes of data.
    pub fn parse(json: &[u8], data_len: u64) -> Result<Self> {
        Self::parse_within(json, data_len, &Allowance::default())
    }

    /// As [`Self::parse`], of a header that is kept beside others.
    pub fn parse_within(json: &[u8], data_len: u64, allowance: &Allowance) -> Result<Self> {
        let mut header = Self::from_json(json, allowance)?;
        header.check_names()?;
        header.tensors.sort_unstable_by_key(|t| (t.begin, t.end));
        // Damage first: nobody could read it, whatever its size.
        if header.reach > data_len {
            return Err(truncated(header.reach, data_len));
        }
        match header.beyond.take() {
            Some(beyond) => Err(beyond),
            None => check_ranges(header.tensors.iter(), data_len).map(|()| header),
        }
    }

    fn from_json(json: &[u8], allowance: &Allowance) -> Result<Self> {
        let mut tensors = Vec::new();
        let header = each_entry(json, allowance, |entry| tensors.push(entry))?;
        Ok(Self { tensors, ..header })
    }

    /// Bytes of data that an otherwise sound header asks for, whatever the file holds.
    pub fn declared_length(json: &[u8]) -> Option<u64> {
        let header = Self::from_json(json, &Allowance::default()).ok()?;
        let length = header.tensors.iter().map(|t| t.end).max().unwrap_or(0);
        Self::parse(json, length).is_ok().then_some(length)
    }

    fn check_names(&self) -> Result<()> {
        let mut names: Vec<&str> = self.tensors.iter().map(|t| &*t.name).collect();
        names.sort_unstable();
        match names.windows(2).find(|w| w[0] == w[1]) {
            Some(pair) => Err(Error::invalid("duplicate key in the header").tensor(pair[0])),
            None => Ok(()),
        }
    }
}

/// Reads the JSON part of a file and hands out its tensors one by one, in their order, without a look
/// at names and ranges; gives the rest of the header.
pub(crate) fn each_entry(
    json: &[u8],
    allowance: &Allowance,
    take: impl FnMut(Entry),
) -> Result<Header> {
    if json.first() != Some(&b'{') {
        return Err(Error::invalid("header does not begin with '{'"));
    }
    std::str::from_utf8(json).map_err(|_| Error::invalid("header is not UTF-8"))?;
    json::check_strings(json, MAX_STRING, MAX_STRING)?;
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let header = deserializer
        .deserialize_map(HeaderVisitor { allowance, take })
        .and_then(|header| deserializer.end().map(|()| header));
    header.map_err(|e| json::error(&e, "malformed header"))
}

fn truncated(asked: u64, held: u64) -> Error {
    let message =
        format!("tensors take {asked} bytes, the file holds {held}: the file is truncated");
    Error::invalid(message).hint("download the file again")
}

/// Checks that `tensors`, by ascending range, fill `data_len` bytes without holes, each as its shape asks.
pub(crate) fn check_ranges<'a>(
    tensors: impl Iterator<Item = &'a Entry>,
    data_len: u64,
) -> Result<()> {
    let mut expected = 0;
    for t in tensors {
        let problem = |what: String| Err(Error::invalid(what).tensor(&*t.name));
        let Some(size) = t.dtype.byte_len(&t.shape) else {
            return problem(format!("shape {:?} of {} has no byte size", t.shape, t.dtype));
        };
        if t.end < t.begin || t.end - t.begin != size {
            return problem(format!(
                "range {}..{} is not the {size} bytes of {} {:?}",
                t.begin, t.end, t.dtype, t.shape
            ));
        }
        if t.begin != expected {
            let what = if t.begin < expected { "overlaps the one before" } else { "leaves a hole" };
            return problem(format!(
                "range {}..{} {what}: expected it to begin at {expected}",
                t.begin, t.end
            ));
        }
        expected = t.end;
    }
    if expected > data_len {
        return Err(truncated(expected, data_len));
    }
    if expected == data_len {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "tensors take {expected} bytes, the file holds {data_len}: bytes follow the last tensor"
    ))
    .hint("download the file again"))
}

struct HeaderVisitor<'r, F> {
    allowance: &'r Allowance,
    take: F,
}

impl Header {
    fn is_beyond(&mut self, what: String) {
        self.beyond.get_or_insert_with(|| Error::too_large(what));
    }
}

impl<'de, F: FnMut(Entry)> Visitor<'de> for HeaderVisitor<'_, F> {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> std::result::Result<Header, A::Error> {
        let mut header = Header::default();
        let mut metadata_seen = false;
        while let Some(name) = map.next_key::<Cow<str>>()? {
            if name == "__metadata__" {
                if std::mem::replace(&mut metadata_seen, true) {
                    return Err(de::Error::custom("duplicate key __metadata__"));
                }
                match map.next_value::<Option<Metadata>>()? {
                    Some(Metadata(Some(pairs))) => header.metadata = pairs,
                    Some(Metadata(None)) => {
                        header.is_beyond(format!("more than {MAX_METADATA} metadata entries"));
                    }
                    None => header.warnings.push("__metadata__ is null".into()),
                }
                continue;
            }
            if name.len() > MAX_NAME {
                let what = format!("a name of {} bytes, more than {MAX_NAME}", name.len());
                header.is_beyond(what);
            }
            let raw = map.next_value::<RawEntry>()?;
            header.reach = header.reach.max(raw.data_offsets.1);
            if let Err(error) = self.allowance.take_tensors(1) {
                header.beyond.get_or_insert(error);
                continue;
            }
            let shape = raw.shape.0.unwrap_or_else(|| {
                header.is_beyond(format!("more than {MAX_RANK} dimensions"));
                Box::default()
            });
            (self.take)(Entry {
                name: name.into(),
                dtype: raw.dtype,
                shape,
                begin: raw.data_offsets.0,
                end: raw.data_offsets.1,
            });
        }
        Ok(header)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: Dtype,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// A shape, `None` of more than [`MAX_RANK`] dimensions; the limit holds while parsing, not after it.
struct Shape(Option<Box<[u64]>>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct ShapeVisitor;
        impl<'de> Visitor<'de> for ShapeVisitor {
            type Value = Shape;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("dimensions")
            }
            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut seq: A,
            ) -> std::result::Result<Shape, A::Error> {
                let (mut dims, mut rank) = ([0u64; MAX_RANK], 0);
                while let Some(dim) = seq.next_element()? {
                    if let Some(next) = dims.get_mut(rank) {
                        *next = dim;
                    }
                    rank += 1;
                }
                Ok(Shape(dims.get(..rank).map(Box::from)))
            }
        }
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

/// `__metadata__`: strings to strings, no key twice; `None` of more than [`MAX_METADATA`] entries.
struct Metadata(Option<Vec<(String, String)>>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct MetadataVisitor;
        impl<'de> Visitor<'de> for MetadataVisitor {
            type Value = Metadata;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Metadata, A::Error> {
                let (mut pairs, mut more): (Vec<(String, String)>, bool) = (Vec::new(), false);
                while let Some(pair) = map.next_entry::<String, String>()? {
                    if pairs.len() == MAX_METADATA {
                        while map.next_entry::<String, String>()?.is_some() {}
                        more = true;
                        break;
                    }
                    pairs.push(pair);
                }
                let mut keys: Vec<&str> = pairs.iter().map(|(k, _)| k.as_str()).collect();
                keys.sort_unstable();
                if keys.windows(2).any(|pair| pair[0] == pair[1]) {
                    return Err(de::Error::custom("duplicate metadata key"));
                }
                Ok(Metadata((!more).then_some(pairs)))
            }
        }
        deserializer.deserialize_map(MetadataVisitor)
    }
}

/// Lays out tensors one after another: sets `begin` and `end` of each, returns the data's length.
pub fn lay_out(tensors: &mut [Entry]) -> Result<u64> {
    let mut position = 0u64;
    for t in tensors {
        let end = t
            .dtype
            .byte_len(&t.shape)
            .and_then(|size| position.checked_add(size))
            .ok_or_else(|| Error::internal("tensor has no byte size").tensor(&*t.name))?;
        (t.begin, t.end) = (position, end);
        position = end;
    }
    Ok(position)
}

/// Encodes prefix and header of a file we write: `__metadata__` format pt (transformers 4 refuses
/// anything else), padded with spaces so that data starts at a multiple of [`DATA_ALIGNMENT`].
pub fn encode(tensors: &[Entry]) -> Result<Vec<u8>> {
    let total = encoded_length(tensors)?;
    let mut bytes = Vec::with_capacity(total as usize);
    bytes.extend_from_slice(&(total - PREFIX).to_le_bytes());
    write_json(&mut bytes, tensors)?;
    bytes.resize(total as usize, b' ');
    Ok(bytes)
}

/// Bytes of what [`encode`] makes of `tensors`. [`Kind::Impossible`](crate::error::Kind::Impossible)
/// above [`MAX_HEADER`].
pub fn encoded_length(tensors: &[Entry]) -> Result<u64> {
    let mut count = Count::default();
    write_json(&mut count, tensors)?;
    let total = (PREFIX + count.0).next_multiple_of(DATA_ALIGNMENT);
    let length = total - PREFIX;
    if length > MAX_HEADER {
        return Err(Error::impossible(format!(
            "a header of {length} bytes is above the format's limit of {MAX_HEADER}"
        ))
        .hint("choose a smaller shard size"));
    }
    Ok(total)
}

fn write_json(out: &mut impl io::Write, tensors: &[Entry]) -> Result<()> {
    let mut write = || -> io::Result<()> {
        out.write_all(br#"{"__metadata__":{"format":"pt"}"#)?;
        for t in tensors {
            out.write_all(b",")?;
            serde_json::to_writer(&mut *out, &*t.name)?;
            write!(out, r#":{{"dtype":"{}","shape":"#, t.dtype)?;
            serde_json::to_writer(&mut *out, &t.shape)?;
            write!(out, r#","data_offsets":[{},{}]}}"#, t.begin, t.end)?;
        }
        out.write_all(b"}")
    };
    write().map_err(|e| Error::internal(format!("cannot encode a header: {e}")))
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
