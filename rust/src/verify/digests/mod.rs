//! Sources of truth: what the files of a checkpoint should be, said by somebody else.
//!
//! [`read_file`] takes a file that the user names and recognises its form by its content;
//! [`parse`] takes a listing that was fetched; [`detect`] finds what a download leaves on disk.
//! Every one becomes a [`Truth`]: for each path its size and digests. Nothing is hashed here.
//!
//! All of it is untrusted. Names go through [`check_name`], limits hold while parsing, digests are
//! strict hexadecimal, and a source that contradicts itself is refused instead of believed.

mod hub;
mod json;
mod leftovers;
pub mod lfs;
mod manifest;
mod modelscope;
mod signing;
mod sums;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::de::IgnoredAny;

use self::json::Pairs;
use crate::catalog::MANIFEST;
use crate::error::{Error, Kind as ErrorKind, Result};
use crate::exec::hash::Digest128;
use crate::exec::publish::SUMS;
use crate::io::root::check_name;
use crate::io::{Root, small};
use crate::verify::cut::Cut;

/// Most files that a source may list; a folder with more is not looked at either.
pub const MAX_FILES: usize = crate::io::root::MAX_ENTRIES;
/// Longest text of a source; a manifest of Ling-1T in FP8 has about 40 MB.
const MAX_TEXT: u64 = crate::catalog::MAX_MANIFEST;
/// Longest path, as on Linux.
const MAX_PATH: usize = 4_096;
/// Name of the file that `b3sum` users write.
const BLAKE3_SUMS: &str = "B3SUMS";

/// A digest over a whole file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256 of the bytes.
    Sha256,
    /// SHA-1 of the bytes behind [`git_blob_header`], as git names its objects.
    GitBlobSha1,
    /// BLAKE3 with 256 bits of output.
    Blake3,
}

impl Algorithm {
    /// Digits of a digest.
    pub fn hex_len(self) -> usize {
        match self {
            Self::Sha256 | Self::Blake3 => 64,
            Self::GitBlobSha1 => 40,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sha256 => "SHA-256",
            Self::GitBlobSha1 => "git SHA-1",
            Self::Blake3 => "BLAKE3",
        })
    }
}

/// What git hashes before the content of a file of `size` bytes.
pub fn git_blob_header(size: u64) -> Vec<u8> {
    format!("blob {size}\0").into_bytes()
}

/// A digest that a file should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileDigest {
    /// How it is computed.
    pub algorithm: Algorithm,
    /// Lower-case hexadecimal of the algorithm's length.
    pub hex: String,
}

impl FileDigest {
    /// Checks length and digits; capital letters are accepted.
    pub fn new(algorithm: Algorithm, text: &str) -> Result<Self> {
        let hex = lower_hex(text, algorithm.hex_len())
            .ok_or_else(|| Error::invalid(format!("{} is no {algorithm} digest", quoted(text))))?;
        Ok(Self { algorithm, hex })
    }

    /// The digest that an `ETag` of the Hugging Face hub is, if it is one.
    fn from_etag(text: &str) -> Option<Self> {
        let sha256 = Self::new(Algorithm::Sha256, text);
        sha256.or_else(|_| Self::new(Algorithm::GitBlobSha1, text)).ok()
    }
}

/// A digest that a tensor's bytes should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorDigest {
    /// Full name.
    pub name: String,
    /// First byte in the file.
    pub begin: u64,
    /// One past the last byte in the file.
    pub end: u64,
    /// XXH3-128 of the bytes as stored.
    pub xxh3: Digest128,
}

/// What a file should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// Bytes.
    pub size: Option<u64>,
    /// At most one of each algorithm; empty if the source lists the file without one.
    pub digests: Vec<FileDigest>,
    /// Digests of its tensors, ordered by range, without overlaps.
    pub tensors: Vec<TensorDigest>,
}

impl Expected {
    /// Adds what a second line of the same source says; `None` if the two contradict each other.
    fn merge(&mut self, other: Self) -> Option<()> {
        if self.size.is_some() && other.size.is_some() && self.size != other.size {
            return None;
        }
        self.size = self.size.or(other.size);
        for digest in other.digests {
            match self.digests.iter().find(|d| d.algorithm == digest.algorithm) {
                Some(known) if *known != digest => return None,
                Some(_) => {}
                None => self.digests.push(digest),
            }
        }
        if self.tensors.is_empty() {
            self.tensors = other.tensors;
        } else if !other.tensors.is_empty() && self.tensors != other.tensors {
            return None;
        }
        Some(())
    }
}

/// The form of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file of checksums, GNU or BSD form.
    Sums,
    /// A listing of the Hugging Face hub.
    HubListing,
    /// What `hf download --local-dir` leaves in `.cache/huggingface`.
    HubLocal,
    /// The links and listings of the Hugging Face cache.
    HubCache,
    /// A listing of `ModelScope`.
    ModelScope,
    /// The manifest that lingconv writes.
    Manifest,
    /// An `OpenSSF` model-signing bundle.
    Signing,
    /// git-lfs pointers.
    Lfs,
    /// The source of a conversion, converted again.
    Source,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sums => "checksum file",
            Self::HubListing => "Hugging Face listing",
            Self::HubLocal => "Hugging Face download records",
            Self::HubCache => "Hugging Face cache",
            Self::ModelScope => "ModelScope listing",
            Self::Manifest => "lingconv manifest",
            Self::Signing => "model-signing bundle",
            Self::Lfs => "git-lfs pointers",
            Self::Source => "source",
        })
    }
}

/// Everything that one source says.
#[derive(Debug, Clone)]
pub struct Truth {
    /// Its form.
    pub kind: Kind,
    /// The file or address it comes from, for people.
    pub origin: String,
    /// The revision it speaks of, where it says so.
    pub commit: Option<String>,
    /// `org/name` on its hub, where it says so.
    pub repository: Option<String>,
    /// What the files should be. Empty where a download left only traces that say nothing; the
    /// notes tell why.
    pub files: BTreeMap<String, Expected>,
    /// Whether a file that is not listed does not belong to the checkpoint.
    pub lists_everything: bool,
    /// Whether lingconv wrote it about its own output.
    pub self_attested: bool,
    /// All revisions met; more than one is a mixed download.
    pub commits: Vec<String>,
    /// Files that come from another revision than `commit`, each with its own.
    pub mixed: Vec<(String, String)>,
    /// What the user should know about the source itself.
    pub notes: Vec<String>,
    /// How the folder was cut for ranks, where it says so.
    pub cut: Option<Cut>,
    /// The text of config.json, where it says more than a digest.
    pub config: Option<String>,
}

impl Truth {
    pub(super) fn new(kind: Kind, origin: &str) -> Self {
        Self {
            kind,
            origin: origin.to_owned(),
            commit: None,
            repository: None,
            files: BTreeMap::new(),
            lists_everything: false,
            self_attested: false,
            commits: Vec::new(),
            mixed: Vec::new(),
            notes: Vec::new(),
            cut: None,
            config: None,
        }
    }

    fn set_commit(&mut self, commit: Option<String>) {
        self.commits = commit.iter().cloned().collect();
        self.commit = commit;
    }

    /// Adds what is said of one file. Refuses hostile names and contradictions.
    pub(super) fn add(&mut self, name: &str, expected: Expected) -> Result<()> {
        check_path(name)?;
        if let Some(known) = self.files.get_mut(name) {
            return known.merge(expected).ok_or_else(|| {
                Error::invalid(format!("{} is listed twice, differently", quoted(name)))
                    .hint("take the list from its source again")
            });
        }
        if self.files.len() == MAX_FILES {
            return Err(Error::too_large(format!("lists more than {MAX_FILES} files")));
        }
        self.files.insert(name.to_owned(), expected);
        Ok(())
    }

    fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }
}

/// Reads a source that the user names; its content says which form it has.
pub fn read_file(path: &Path) -> Result<Truth> {
    let Some(found) = small::look(path)? else {
        return Err(Error::usage("no such file").at(path));
    };
    if found.is_dir() {
        return Err(Error::usage("a folder is no list of digests").at(path));
    }
    parse(&text_of(small::read(path, MAX_TEXT)?, path)?, &path.to_string_lossy(), None)
}

/// Reads a source of a known or, without a hint, recognised form. `origin` is its file or address;
/// its last part names the file of a git-lfs pointer and tells BLAKE3 sums from SHA-256 sums.
///
/// A hint also says that the listing is whole: a saved one may be a single page of several.
pub fn parse(text: &str, origin: &str, kind_hint: Option<Kind>) -> Result<Truth> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let read = || match kind_hint.map_or_else(|| recognise(text), Ok)? {
        Kind::Sums => sums::parse(text, origin),
        Kind::HubListing => hub::listing(text, origin, kind_hint.is_some()),
        Kind::HubLocal | Kind::HubCache => hub::tree(text, origin),
        Kind::ModelScope => modelscope::parse(text, origin),
        Kind::Manifest => manifest::parse(text, origin),
        Kind::Signing => signing::parse(text, origin),
        Kind::Lfs => lfs::parse(text, origin),
        Kind::Source => Err(Error::internal("a source is a folder, not a text")),
    };
    let truth = read().map_err(|e| e.at(origin))?;
    if truth.files.is_empty() {
        return Err(unverifiable("it lists no files to compare with").at(origin));
    }
    Ok(truth)
}

/// Finds what a download or a run of lingconv left in a folder, most telling first.
///
/// Damaged records of a download are notes, as they are to the program that wrote them. A damaged
/// checksum file or manifest is an error, and so is a hostile name anywhere.
pub fn detect(root: &Root) -> Result<Vec<Truth>> {
    let mut truths = Vec::new();
    truths.extend(leftovers::local(root)?);
    truths.extend(leftovers::cache(root)?);
    let files = [(SUMS, Kind::Sums), (BLAKE3_SUMS, Kind::Sums), (MANIFEST, Kind::Manifest)];
    for (name, kind) in files {
        let Some(bytes) = read_regular(root, name, MAX_TEXT)? else { continue };
        let path = root.path().join(name);
        match parse(&text_of(bytes, &path)?, &path.to_string_lossy(), Some(kind)) {
            Ok(truth) => truths.push(truth),
            Err(error) if error.kind == ErrorKind::Unverifiable => {}
            Err(error) => return Err(error),
        }
    }
    truths.extend(lfs::folder(root)?);
    Ok(truths)
}

fn recognise(text: &str) -> Result<Kind> {
    let start = text.trim_start();
    if start.starts_with('[') {
        return Ok(Kind::HubListing);
    }
    if start.starts_with('<') {
        return Err(Error::invalid("a web page in place of a list of digests")
            .hint("save the answer of the hub's API, not the page that shows it"));
    }
    if lfs::pointer(text).is_some() {
        return Ok(Kind::Lfs);
    }
    if !start.starts_with('{') {
        return Ok(Kind::Sums);
    }
    let keys: Pairs<IgnoredAny> = json::parse(text)?;
    let has = |name: &str| keys.0.iter().any(|(key, _)| key == name);
    Ok(if has("schema") {
        Kind::Manifest
    } else if has("Data") || has("Code") {
        Kind::ModelScope
    } else if has("dsseEnvelope") || has("payload") || has("predicateType") {
        Kind::Signing
    } else if has("siblings") || has("error") {
        Kind::HubListing
    } else {
        Kind::HubLocal
    })
}

/// [`check_name`], and a limit of length.
fn check_path(name: &str) -> Result<()> {
    if name.len() > MAX_PATH {
        return Err(Error::invalid(format!("a path of {} bytes", name.len())));
    }
    check_name(name)
}

/// Reads a regular file of the folder; `None` if it does not exist. Pipes are not opened.
fn read_regular(root: &Root, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
    let Some(path) = root.resolve(name)? else { return Ok(None) };
    if !small::is_file(&path)? {
        return Err(Error::invalid("not a regular file").at(root.path().join(name)));
    }
    small::read(&path, limit).map(Some)
}

fn text_of(bytes: Vec<u8>, path: &Path) -> Result<String> {
    String::from_utf8(bytes).map_err(|_| {
        Error::invalid("no list of digests: not UTF-8 text")
            .at(path)
            .hint("name a SHA256SUMS file, a saved listing of the hub, or a manifest")
    })
}

/// `text` in lower case if it is exactly `digits` hexadecimal digits.
fn lower_hex(text: &str, digits: usize) -> Option<String> {
    let strict = text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    strict.then(|| text.to_ascii_lowercase())
}

/// A full commit id.
fn commit_of(text: &str) -> Option<String> {
    lower_hex(text, 40)
}

/// Untrusted text for a message: short, without control characters.
fn quoted(text: &str) -> String {
    const MOST: usize = 120;
    let short: String = text.chars().take(MOST).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("{short:?}{more}")
}

fn unverifiable(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unverifiable, message)
}

#[cfg(test)]
mod tests;
