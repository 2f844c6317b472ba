//! Listings of the Hugging Face hub, as its API answers and as its client stores them.

use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::json::{self, Pairs, Rows};
use super::{
    Algorithm, Expected, FileDigest, Kind, Truth, check_path, commit_of, quoted, unverifiable,
};
use crate::error::{Error, Result};

/// Entries of a full page of the tree API, plain and expanded.
const PAGE: usize = 1_000;
const EXPANDED_PAGE: usize = 50;

/// An entry of the tree API, or a sibling of the model API.
#[derive(Deserialize)]
struct Item {
    #[serde(rename = "type")]
    kind: Option<String>,
    path: Option<String>,
    rfilename: Option<String>,
    size: Option<u64>,
    #[serde(alias = "blobId", alias = "blob_id")]
    oid: Option<String>,
    lfs: Option<Lfs>,
    #[serde(rename = "xetHash", alias = "xet_hash")]
    xet: Option<IgnoredAny>,
    #[serde(rename = "lastCommit", alias = "last_commit")]
    last_commit: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Lfs {
    #[serde(alias = "sha256")]
    oid: String,
    size: Option<u64>,
}

/// The model API with `blobs=true`.
#[derive(Deserialize)]
struct Model {
    id: Option<String>,
    sha: Option<String>,
    siblings: Option<Rows<Item>>,
    error: Option<String>,
}

/// Size and digest of a file. The git object of an LFS file is its pointer, so its id says nothing
/// of the data; the same holds for a Xet file of which only the Xet hash is known.
fn expected(
    size: Option<u64>,
    blob: Option<&str>,
    sha256: Option<&str>,
    is_xet: bool,
) -> Result<Expected> {
    let digest = match (sha256, blob) {
        (Some(hex), _) => Some(FileDigest::new(Algorithm::Sha256, hex)?),
        (None, Some(hex)) if !is_xet => Some(FileDigest::new(Algorithm::GitBlobSha1, hex)?),
        _ => None,
    };
    Ok(Expected { size, digests: digest.into_iter().collect(), tensors: Vec::new() })
}

/// Parses the answer of the tree API (an array) or of the model API (an object). A listing that is
/// not known to be `whole` may be one page of several.
pub(super) fn listing(text: &str, origin: &str, whole: bool) -> Result<Truth> {
    let mut truth = Truth::new(Kind::HubListing, origin);
    truth.lists_everything = true;
    if text.trim_start().starts_with('[') {
        let items: Rows<Item> = json::parse(text)?;
        let full = match items.0.first() {
            Some(Item { last_commit: Some(_), .. }) => EXPANDED_PAGE,
            _ => PAGE,
        };
        if !whole && items.0.len() == full {
            truth.lists_everything = false;
            truth.note(format!(
                "the listing has exactly {full} entries, one page of the API: it may be cut"
            ));
        }
        add_items(&mut truth, items)?;
        return Ok(truth);
    }
    let model: Model = json::parse(text)?;
    if let Some(error) = model.error {
        let message = format!("an error of the hub in place of a listing: {}", quoted(&error));
        return Err(unverifiable(message));
    }
    truth.repository = model.id;
    truth.set_commit(model.sha.as_deref().and_then(commit_of));
    add_items(&mut truth, model.siblings.unwrap_or_default())?;
    Ok(truth)
}

fn add_items(truth: &mut Truth, items: Rows<Item>) -> Result<()> {
    let mut folders = Vec::new();
    let mut bare = 0u64;
    for item in items.0 {
        let path = item.path.or(item.rfilename);
        let path = path.ok_or_else(|| Error::invalid("an entry without a path"))?;
        if item.kind.as_deref().is_some_and(|kind| kind != "file") {
            check_path(&path)?;
            folders.push(path);
            continue;
        }
        let lfs_size = item.lfs.as_ref().and_then(|lfs| lfs.size);
        let sha256 = item.lfs.as_ref().map(|lfs| lfs.oid.as_str());
        let size = lfs_size.or(item.size);
        let expected = expected(size, item.oid.as_deref(), sha256, item.xet.is_some())?;
        bare += u64::from(expected.digests.is_empty());
        truth.add(&path, expected)?;
    }
    if bare > 0 {
        truth.note(format!("{bare} files are listed without a digest"));
    }
    let empty = |folder: &String| {
        let inside = format!("{folder}/");
        let next = truth.files.range(inside.clone()..).next();
        !next.is_some_and(|(name, _)| name.starts_with(&inside))
    };
    if let Some(folder) = folders.iter().find(|f| empty(f)) {
        let text = format!("the listing is not recursive: it names no files in {}", quoted(folder));
        truth.note(text);
        truth.lists_everything = false;
    }
    Ok(())
}

/// A listing as `huggingface_hub` stores it for a commit.
#[derive(Deserialize)]
pub(super) struct Tree {
    format_version: Option<u64>,
    files: Pairs<Stored>,
}

#[derive(Deserialize)]
struct Stored {
    size: Option<u64>,
    blob_id: Option<String>,
    lfs_sha256: Option<String>,
    lfs_size: Option<u64>,
    xet_hash: Option<IgnoredAny>,
}

/// Form of the stored listings.
const TREE_FORMAT: u64 = 1;

impl Tree {
    /// Parses a stored listing, with or without its envelope.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let keys: Pairs<IgnoredAny> = json::parse(text)?;
        if !keys.0.iter().any(|(key, _)| key == "format_version") {
            return Ok(Self { format_version: None, files: json::parse(text)? });
        }
        let tree: Self = json::parse(text)?;
        match tree.format_version {
            None | Some(TREE_FORMAT) => Ok(tree),
            Some(other) => Err(Error::invalid(format!("a stored listing of format {other}"))
                .hint("update lingconv, or compare with --against hub")),
        }
    }

    /// Adds its files to `truth`.
    pub(super) fn add_to(self, truth: &mut Truth) -> Result<()> {
        for (path, file) in self.files.0 {
            let (blob, sha256) = (file.blob_id.as_deref(), file.lfs_sha256.as_deref());
            let size = file.lfs_size.or(file.size);
            truth.add(&path, expected(size, blob, sha256, file.xet_hash.is_some())?)?;
        }
        truth.lists_everything = true;
        Ok(())
    }
}

/// Parses a stored listing whose file is named after its commit.
pub(super) fn tree(text: &str, origin: &str) -> Result<Truth> {
    let mut truth = Truth::new(Kind::HubLocal, origin);
    let stem = Path::new(origin).file_stem().and_then(|s| s.to_str());
    truth.set_commit(stem.and_then(commit_of));
    Tree::parse(text)?.add_to(&mut truth)?;
    Ok(truth)
}
