//! JSON of unknown origin: what it becomes is bounded, not only its text.
//!
//! A [`Value`] takes 30 to 120 bytes for an element of two, so a text is counted before it is built.
//! What is large and has a form of its own is read into that form, and the rest of it skipped.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{self, DeserializeOwned, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::error::{Error, Result, beginning};
use crate::header::MAX_NAME;
use crate::io::root::MAX_ENTRIES;

/// Most elements of a text that becomes a [`Value`]; configurations of models have some thousands.
const MAX_ELEMENTS: usize = 500_000;

/// Longest text of an error that a parser gives, in bytes.
const MAX_WORDS: usize = 500;
/// How the text of an error begins that no damage is the reason of.
const TOO_MANY: &str = "more than";
/// Longest string of an index.
const MAX_INDEX_STRING: usize = 1 << 20;
/// Longest string of a manifest that has more than base64 in it: a config.json within JSON.
const MAX_MANIFEST_STRING: usize = 18 << 20;

/// Most tensors that an index names.
const MAX_TENSORS: usize = 1_000_000;
/// Most files that an index names, as many as are looked for in a folder.
const MAX_FILES: usize = MAX_ENTRIES;

/// Parses `text` to a [`Value`]; refuses what would take much more memory than any configuration.
pub fn value(text: &[u8]) -> Result<Value> {
    let elements = elements(text);
    if elements > MAX_ELEMENTS {
        let what = format!("{elements} elements of JSON, more than {MAX_ELEMENTS}");
        return Err(Error::too_large(what));
    }
    serde_json::from_slice(text).map_err(|e| error(&e, "malformed JSON"))
}

/// The form of a manifest, in a text of its bytes.
pub fn manifest<T: DeserializeOwned>(text: &[u8]) -> Result<T> {
    check_strings(text, MAX_MANIFEST_STRING, usize::MAX)?;
    serde_json::from_slice(text).map_err(|e| error(&e, "unreadable manifest"))
}

/// What `found` says of a text: that there is too much of something, or `what` with the reason.
pub fn error(found: &serde_json::Error, what: &str) -> Error {
    let mut words = Words::default();
    if write!(words, "{found}").is_err() {
        let place = format!("… at line {} column {}", found.line(), found.column());
        words.0.push_str(&place);
    }
    if words.0.starts_with(TOO_MANY) {
        return Error::too_large(words.0);
    }
    Error::invalid(format!("{what}: {}", words.0))
}

/// The beginning of a text that may quote megabytes.
#[derive(Default)]
struct Words(String);

impl fmt::Write for Words {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let left = MAX_WORDS.saturating_sub(self.0.len());
        self.0.push_str(beginning(text, left));
        if text.len() > left { Err(fmt::Error) } else { Ok(()) }
    }
}

/// Refuses strings of more than `most` bytes, or of `most_plain` if they are ASCII without escapes: a
/// parser that meets one where it does not belong quotes it, and holds it several times over.
///
/// # Errors
/// [`Error::too_large`].
pub fn check_strings(text: &[u8], most: usize, most_plain: usize) -> Result<()> {
    let mut rest = text;
    while let Some(open) = memchr::memchr(b'"', rest) {
        rest = &rest[open + 1..];
        let (mut length, mut plain) = (0, true);
        while let Some(at) = memchr::memchr2(b'"', b'\\', &rest[length..]) {
            length += at;
            if rest[length] == b'"' {
                break;
            }
            (length, plain) = ((length + 2).min(rest.len()), false);
        }
        let long = length > most && (length > most_plain || !plain || !rest[..length].is_ascii());
        if long {
            return Err(Error::too_large(format!("a string of {length} bytes, more than {most}")));
        }
        rest = rest.get(length + 1..).unwrap_or_default();
    }
    Ok(())
}

/// How many elements `text` can have at most: each but the first of a list follows a comma.
fn elements(text: &[u8]) -> usize {
    let (mut count, mut in_string, mut escaped) = (0, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b',' | b'[' | b'{' if !in_string => count += 1,
            _ => {}
        }
    }
    count
}

/// The index of a checkpoint.
#[derive(Debug)]
pub struct Index {
    /// What it says of the bytes of all tensors.
    pub total_size: Option<u64>,
    /// Names of the files.
    files: Vec<String>,
    /// Names of the tensors, each with the number of its file.
    tensors: Vec<(Box<str>, u32)>,
}

impl Index {
    /// Parses an index; everything but its map and its total is skipped.
    pub fn parse(text: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Whole {
            #[serde(default)]
            metadata: Metadata,
            weight_map: Bounded,
        }
        #[derive(Deserialize, Default)]
        struct Metadata {
            #[serde(default)]
            total_size: Number,
        }
        check_strings(text, MAX_INDEX_STRING, MAX_INDEX_STRING)?;
        let whole: Whole =
            serde_json::from_slice(text).map_err(|e| error(&e, "malformed index"))?;
        let WeightMap { files, tensors } = whole.weight_map.0.map_err(Error::too_large)?;
        Ok(Self { total_size: whole.metadata.total_size.0, files, tensors })
    }

    /// Number of tensors that it names.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether it names no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Names of the files, each once.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// Names of the tensors and of their files.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tensors.iter().map(|(tensor, file)| (&**tensor, &*self.files[*file as usize]))
    }
}

struct WeightMap {
    files: Vec<String>,
    tensors: Vec<(Box<str>, u32)>,
}

/// The map, or what there is too much of, past which it was only read to its end.
struct Bounded(Result<WeightMap, String>);

impl<'de> Deserialize<'de> for Bounded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MapVisitor;
        impl<'de> Visitor<'de> for MapVisitor {
            type Value = Bounded;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of file names")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Bounded, A::Error> {
                let mut known: HashMap<String, u32> = HashMap::new();
                let mut tensors: Vec<(Box<str>, u32)> = Vec::new();
                while let Some((tensor, file)) = map.next_entry::<Box<str>, String>()? {
                    let next = known.len();
                    let number = *known.entry(file).or_insert(next as u32);
                    let too_large = if tensors.len() == MAX_TENSORS {
                        Some(format!("more than {MAX_TENSORS} tensors"))
                    } else if tensor.len() > MAX_NAME {
                        Some(format!("a name of {} bytes, more than {MAX_NAME}", tensor.len()))
                    } else if number as usize == MAX_FILES {
                        Some(format!("more than {MAX_FILES} files"))
                    } else {
                        None
                    };
                    if let Some(what) = too_large {
                        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                        return Ok(Bounded(Err(what)));
                    }
                    tensors.push((tensor, number));
                }
                let mut files = vec![String::new(); known.len()];
                for (file, number) in known {
                    files[number as usize] = file;
                }
                Ok(Bounded(Ok(WeightMap { files, tensors })))
            }
        }
        deserializer.deserialize_map(MapVisitor)
    }
}

/// A whole number, or anything else, which is skipped.
#[derive(Default)]
struct Number(Option<u64>);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberVisitor;
        impl<'de> Visitor<'de> for NumberVisitor {
            type Value = Number;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_u64<E>(self, number: u64) -> Result<Number, E> {
                Ok(Number(Some(number)))
            }
            fn visit_i64<E>(self, _: i64) -> Result<Number, E> {
                Ok(Number(None))
            }
            fn visit_f64<E>(self, _: f64) -> Result<Number, E> {
                Ok(Number(None))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Number, E> {
                Ok(Number(None))
            }
            fn visit_str<E>(self, _: &str) -> Result<Number, E> {
                Ok(Number(None))
            }
            fn visit_unit<E>(self) -> Result<Number, E> {
                Ok(Number(None))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Number, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Number(None))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Number, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Number(None))
            }
        }
        deserializer.deserialize_any(NumberVisitor)
    }
}

/// A writer that counts, and keeps nothing.
#[derive(Debug, Default)]
pub struct Count(pub u64);

impl std::io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An array of at most `MOST` elements.
#[derive(Debug)]
pub struct Rows<T, const MOST: usize>(pub Vec<T>);

impl<T, const MOST: usize> Default for Rows<T, MOST> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Rows<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RowsVisitor<T, const MOST: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for RowsVisitor<T, MOST> {
            type Value = Rows<T, MOST>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an array")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Rows<T, MOST>, A::Error> {
                let mut rows = Vec::new();
                while let Some(row) = seq.next_element()? {
                    if rows.len() == MOST {
                        return Err(too_many(MOST));
                    }
                    rows.push(row);
                }
                Ok(Rows(rows))
            }
        }
        deserializer.deserialize_seq(RowsVisitor(PhantomData))
    }
}

/// Refuses more than `limit` of whatever is parsed.
pub fn too_many<E: de::Error>(limit: usize) -> E {
    E::custom(format!("{TOO_MANY} {limit} entries"))
}

/// For fields: a list of at most `MOST` elements.
pub fn at_most<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MOST: usize>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Rows::<T, MOST>::deserialize(deserializer).map(|rows| rows.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_outside_strings_are_counted() {
        assert_eq!(elements(br#"{"a,\",[{": [1, 2, {"b": ","}]}"#), 5);
        let small = format!("[{}0]", "0,".repeat(MAX_ELEMENTS - 2));
        assert!(value(small.as_bytes()).is_ok());
        let large = format!("[{}0]", "0,".repeat(MAX_ELEMENTS));
        assert!(value(large.as_bytes()).unwrap_err().message.contains("more than 500000"));
    }

    #[test]
    fn long_strings_are_refused_and_plain_ones_are_longer() {
        let check = |text: &str| check_strings(text.as_bytes(), 4, 8).is_ok();
        for text in [r#"{"abcd":"a\"d"}"#, r#"["12345678"]"#, r#"["a", "äö"]"#, "", "\"", "\"\\"]
        {
            assert!(check(text), "{text}");
        }
        for text in [r#"["123456789"]"#, r#"["ab\nde"]"#, r#"["äöü"]"#, r#"["a","\\\\\\"]"#] {
            assert!(!check(text), "{text}");
        }
    }

    #[test]
    fn deep_nesting_is_an_error() {
        for open in ["[", "{\"a\":"] {
            assert!(value(open.repeat(100_000).as_bytes()).is_err());
            let hidden = format!("{{\"x\":{}", open.repeat(1_000_000));
            assert!(Index::parse(hidden.as_bytes()).is_err());
        }
    }

    #[test]
    fn an_index_is_read_past_what_it_need_not_hold() {
        let text = br#"{"metadata": {"z": [0, 1], "total_size": 7}, "y": {}, "weight_map":
            {"b": "2", "a": "1", "c": "2"}}"#;
        let index = Index::parse(text).unwrap();
        assert_eq!((index.total_size, index.len(), index.files().len()), (Some(7), 3, 2));
        assert_eq!(index.tensors().collect::<Vec<_>>(), [("b", "2"), ("a", "1"), ("c", "2")]);
        let vague = br#"{"metadata": {"total_size": [1, {}]}, "weight_map": {"a": "1"}}"#;
        assert_eq!(Index::parse(vague).unwrap().total_size, None);
        assert!(Index::parse(br#"{"weight_map": {"a": 1}}"#).is_err());
    }
}
