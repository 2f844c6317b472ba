//! The listing that `ModelScope` answers at `repo/files`.

use serde::Deserialize;

use super::json::{self, Rows};
use super::{
    Algorithm, Expected, FileDigest, Kind, Truth, check_path, commit_of, quoted, unverifiable,
};
use crate::error::Result;

/// Entries at which the service cuts a listing without saying so.
pub const LISTING_LIMIT: usize = 3_000;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    success: Option<bool>,
    message: Option<String>,
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    files: Option<Rows<Item>>,
    latest_committer: Option<Committer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Committer {
    id: Option<String>,
    short_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    path: String,
    #[serde(rename = "Type")]
    kind: Option<String>,
    size: Option<u64>,
    sha256: Option<String>,
    /// The commit that last changed the file, not the one that is listed.
    revision: Option<String>,
}

pub(super) fn parse(text: &str, origin: &str) -> Result<Truth> {
    let answer: Answer = json::parse(text)?;
    let message = answer.message.unwrap_or_default();
    let Some(data) = answer.data.filter(|_| answer.success != Some(false)) else {
        let text = format!("an error of ModelScope in place of a listing: {}", quoted(&message));
        return Err(unverifiable(text));
    };
    // The service answers so for a revision that does not exist.
    let files = data.files.ok_or_else(|| unverifiable("a ModelScope listing without files"))?;
    let mut truth = Truth::new(Kind::ModelScope, origin);
    truth.set_commit(commit(data.latest_committer, &files.0));
    truth.lists_everything = files.0.len() < LISTING_LIMIT;
    if !truth.lists_everything {
        let count = files.0.len();
        truth.note(format!(
            "the listing has {count} entries; ModelScope cuts it at {LISTING_LIMIT}"
        ));
    }
    let mut bare = 0u64;
    for item in files.0 {
        if item.kind.as_deref() == Some("tree") {
            check_path(&item.path)?;
            continue;
        }
        let sha256 = item.sha256.filter(|hex| !hex.is_empty());
        let digest = sha256.map(|hex| FileDigest::new(Algorithm::Sha256, &hex)).transpose()?;
        bare += u64::from(digest.is_none());
        let digests = digest.into_iter().collect();
        let expected = Expected { size: item.size, digests, tensors: Vec::new() };
        truth.add(&item.path, expected)?;
    }
    if bare > 0 {
        truth.note(format!("{bare} files are listed without a digest"));
    }
    Ok(truth)
}

/// The commit that is listed: given in full, or in short where a file that it changed has the rest.
fn commit(committer: Option<Committer>, files: &[Item]) -> Option<String> {
    let committer = committer?;
    if let Some(commit) = committer.id.as_deref().and_then(commit_of) {
        return Some(commit);
    }
    let short = committer.short_id.filter(|id| id.len() >= 8)?.to_ascii_lowercase();
    let revisions = files.iter().filter_map(|file| file.revision.as_deref().and_then(commit_of));
    revisions.into_iter().find(|revision| revision.starts_with(&short))
}
