//! JSON of unknown origin: limits that hold while parsing, and repeated keys that are kept.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};

use super::MAX_FILES;
use crate::error::{Kind, Result};
use crate::json::too_many;

/// Parses `text`, which must be one JSON value.
pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T> {
    crate::json::manifest(text.as_bytes()).map_err(|e| match e.kind {
        Kind::Invalid => e.hint("the file is damaged or cut; take it from its source again"),
        _ => e,
    })
}

/// An array of at most `MOST` elements.
pub(super) type Rows<T, const MOST: usize = MAX_FILES> = crate::json::Rows<T, MOST>;

/// An object of at most [`MAX_FILES`] entries in their order; a map would keep one of two equal keys.
#[derive(Debug)]
pub(super) struct Pairs<T>(pub(super) Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for PairsVisitor<T> {
            type Value = Pairs<T>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<T>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    if pairs.len() == MAX_FILES {
                        return Err(too_many(MAX_FILES));
                    }
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor(PhantomData))
    }
}
