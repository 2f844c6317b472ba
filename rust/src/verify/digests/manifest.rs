//! The manifest that lingconv writes after a run.

use std::borrow::Cow;

use serde::Deserialize;

use super::json::{self, Rows};
use super::{Algorithm, Expected, FileDigest, Kind, TensorDigest, Truth, quoted};
use crate::error::{Error, Result};
use crate::exec::hash::Digest128;
use crate::header::MAX_TENSORS;
use crate::verify::cut::{self, Cut};

/// How the names of all versions of the form begin, and the version that is read.
const SCHEMA: &str = "lingconv.manifest/";
const VERSION: &str = "1";

#[derive(Deserialize)]
struct Manifest {
    schema: String,
    files: Rows<File>,
    #[serde(default)]
    sidecars: Option<Rows<Sidecar>>,
    #[serde(default)]
    request: Option<cut::Request>,
    #[serde(default)]
    config: Option<String>,
}

/// A file, whose rows became digests as soon as they were read: there may be many.
#[derive(Deserialize)]
#[serde(from = "RawFile")]
struct File {
    path: String,
    size: u64,
    sha256: Option<String>,
    tensors: Result<Vec<TensorDigest>>,
}

#[derive(Deserialize)]
struct RawFile {
    path: String,
    size: u64,
    #[serde(default)]
    sha256: Option<String>,
    data_start: u64,
    tensors: Rows<Tensor, MAX_TENSORS>,
}

impl From<RawFile> for File {
    fn from(raw: RawFile) -> Self {
        let tensors = tensors(raw.tensors.0, raw.data_start, raw.size);
        Self { path: raw.path, size: raw.size, sha256: raw.sha256, tensors }
    }
}

#[derive(Deserialize)]
struct Tensor {
    name: String,
    range: (u64, u64),
    /// Linked files were not read, so their tensors have none.
    #[serde(default)]
    xxh3: Option<Told>,
}

/// What a manifest gives as a digest; none if it cannot be one.
#[derive(Deserialize)]
#[serde(from = "Cow<'_, str>")]
struct Told(Option<Digest128>);

impl From<Cow<'_, str>> for Told {
    fn from(text: Cow<'_, str>) -> Self {
        Self(text.parse().ok())
    }
}

#[derive(Deserialize)]
struct Sidecar {
    path: String,
    size: u64,
    sha256: String,
}

pub(super) fn parse(text: &str, origin: &str) -> Result<Truth> {
    let manifest: Manifest = json::parse(text)?;
    match manifest.schema.strip_prefix(SCHEMA) {
        Some(VERSION) => {}
        Some(other) => {
            return Err(Error::invalid(format!("a manifest of version {}", quoted(other)))
                .hint("use the lingconv that wrote it, or a newer one"));
        }
        None => return Err(Error::invalid("not a lingconv manifest")),
    }
    let mut truth = Truth::new(Kind::Manifest, origin);
    (truth.lists_everything, truth.self_attested) = (true, true);
    truth.config = manifest.config;
    let names = manifest.files.0.iter().map(|f| f.path.clone()).collect();
    truth.cut = manifest.request.and_then(|request| Cut::of(&request, names));
    for file in manifest.files.0 {
        let digest = file.sha256.as_deref().map(|hex| FileDigest::new(Algorithm::Sha256, hex));
        let digests = digest.transpose()?.into_iter().collect();
        let tensors = file.tensors.map_err(|e| Error {
            message: format!("{}: {}", quoted(&file.path), e.message),
            ..e
        })?;
        truth.add(&file.path, Expected { size: Some(file.size), digests, tensors })?;
    }
    for sidecar in manifest.sidecars.map(|s| s.0).unwrap_or_default() {
        let digests = vec![FileDigest::new(Algorithm::Sha256, &sidecar.sha256)?];
        let expected = Expected { size: Some(sidecar.size), digests, tensors: Vec::new() };
        truth.add(&sidecar.path, expected)?;
    }
    Ok(truth)
}

/// Ranges in the file, in order; refuses those that overlap or leave the file.
fn tensors(rows: Vec<Tensor>, data_start: u64, size: u64) -> Result<Vec<TensorDigest>> {
    let mut tensors = Vec::new();
    for row in rows {
        let bad = |what: String| Error::invalid(what).tensor(quoted(&row.name));
        let Some(Told(xxh3)) = row.xxh3 else { continue };
        let xxh3 = xxh3.ok_or_else(|| bad("its xxh3 is no XXH3-128 digest".to_owned()))?;
        let (begin, end) =
            (data_start.checked_add(row.range.0), data_start.checked_add(row.range.1));
        match (begin, end) {
            (Some(begin), Some(end)) if begin <= end && end <= size => {
                tensors.push(TensorDigest { name: row.name, begin, end, xxh3 });
            }
            _ => {
                let (from, to) = row.range;
                return Err(bad(format!("range {from}..{to} is not inside the file")));
            }
        }
    }
    tensors.shrink_to_fit();
    tensors.sort_by_key(|t| (t.begin, t.end));
    match tensors.windows(2).find(|pair| pair[1].begin < pair[0].end) {
        Some(pair) => Err(Error::invalid("two tensors overlap").tensor(quoted(&pair[1].name))),
        None => Ok(tensors),
    }
}
