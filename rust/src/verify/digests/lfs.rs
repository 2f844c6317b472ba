//! git-lfs pointers: the small texts that stand in place of data in a clone without it.

use std::path::Path;

use super::{Algorithm, Expected, FileDigest, Kind, Truth, read_regular};
use crate::error::{Error, Result};
use crate::io::{Root, small};

/// How a pointer begins.
pub const MAGIC: &str = "version https://git-lfs.github.com/spec/v1\n";
/// Longest pointer that git-lfs itself reads.
pub const MAX_POINTER: u64 = 1_024;
/// How deep folders are searched for pointers.
const DEPTH: usize = 8;

/// What a pointer says of the file that belongs in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer {
    /// SHA-256 of the data, lower case.
    pub sha256: FileDigest,
    /// Bytes of the data.
    pub size: u64,
}

/// Reads a pointer; `None` if `text` is none.
pub fn pointer(text: &str) -> Option<Pointer> {
    if text.len() as u64 > MAX_POINTER {
        return None;
    }
    let (mut oid, mut size) = (None, None);
    for line in text.strip_prefix(MAGIC)?.lines() {
        match line.split_once(' ')? {
            ("oid", value) if oid.is_none() => oid = Some(value),
            ("size", value) if size.is_none() => size = Some(value),
            (key, _) if key.starts_with("ext-") => {}
            _ => return None,
        }
    }
    let sha256 = FileDigest::new(Algorithm::Sha256, oid?.strip_prefix("sha256:")?).ok()?;
    let digits = size.filter(|s| s.bytes().all(|b| b.is_ascii_digit()))?;
    Some(Pointer { sha256, size: digits.parse().ok()? })
}

impl From<Pointer> for Expected {
    fn from(pointer: Pointer) -> Self {
        Self { size: Some(pointer.size), digests: vec![pointer.sha256], tensors: Vec::new() }
    }
}

/// A single pointer file; it speaks of the file that has its name.
pub(super) fn parse(text: &str, origin: &str) -> Result<Truth> {
    let pointer = pointer(text).ok_or_else(|| Error::invalid("no git-lfs pointer"))?;
    let name = Path::new(origin).file_name().map(|n| n.to_string_lossy().into_owned());
    let mut truth = Truth::new(Kind::Lfs, origin);
    truth.add(&name.unwrap_or_default(), pointer.into())?;
    Ok(truth)
}

/// All pointers in a folder; `None` if there are none.
pub(super) fn folder(root: &Root) -> Result<Option<Truth>> {
    let mut truth = Truth::new(Kind::Lfs, &root.path().to_string_lossy());
    for name in root.names(DEPTH)? {
        // A link that leads outside is a finding of whoever checks the file itself.
        let path = match root.resolve(&name) {
            Err(error) if error.is_of_the_machine() => return Err(error),
            Err(_) | Ok(None) => continue,
            Ok(Some(path)) => path,
        };
        let size = small::size(&path)?;
        if !size.is_some_and(|s| s >= MAGIC.len() as u64 && s <= MAX_POINTER) {
            continue;
        }
        let Some(bytes) = read_regular(root, &name, MAX_POINTER)? else { continue };
        if let Some(pointer) = std::str::from_utf8(&bytes).ok().and_then(pointer) {
            truth.add(&name, pointer.into())?;
        }
    }
    Ok(Some(truth).filter(|t| !t.files.is_empty()))
}
