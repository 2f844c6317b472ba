//! What `huggingface_hub` leaves on disk, so that a download can be verified without a network.
//!
//! A download into a folder leaves `.cache/huggingface/download/<path>.metadata` (commit, entity
//! tag and time, a line each) and, newer clients, the whole listing of the commit in
//! `.cache/huggingface/trees/<commit>.json`. The shared cache keeps files in `blobs/<entity tag>`
//! behind links of `snapshots/<commit>`. An entity tag is the SHA-256 of an LFS file and the git
//! object id of any other.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;

use super::hub::Tree;
use super::{Expected, FileDigest, Kind, MAX_FILES, Truth, commit_of, quoted, read_regular};
use crate::error::{Error, Kind as ErrorKind, Result};
use crate::io::{Root, small};

/// Folder of the client inside a local download.
const LOCAL: &str = ".cache/huggingface";
/// Suffix of a file's record.
const METADATA: &str = ".metadata";
/// Longest record.
const MAX_RECORD: u64 = 4_096;
/// How deep records and snapshots are searched.
const DEPTH: usize = 16;
/// Most stored listings that are read, and the longest of them.
const MAX_TREES: usize = 16;
const MAX_TREE: u64 = 64 << 20;
/// Most commits that are weighed against each other, the most frequent ones.
const MAX_COMMITS: usize = 64;

/// What the client noted of one file.
struct Record {
    path: String,
    commit: String,
    digest: Option<FileDigest>,
    time: f64,
}

impl Record {
    fn parse(path: &str, text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let commit = commit_of(lines.next()?.trim())?;
        let digest = FileDigest::from_etag(lines.next()?.trim());
        let time = lines.next()?.trim().parse().ok()?;
        Some(Self { path: path.to_owned(), commit, digest, time })
    }

    fn expected(&self) -> Expected {
        let digests = self.digest.iter().cloned().collect();
        Expected { size: None, digests, tensors: Vec::new() }
    }
}

/// Stored listings by commit, each as a truth of its own.
type Trees = BTreeMap<String, Truth>;

/// What a download into this folder left behind, if it did.
pub(super) fn local(root: &Root) -> Result<Option<Truth>> {
    let mut truth = Truth::new(Kind::HubLocal, &root.path().join(LOCAL).to_string_lossy());
    let mut trees = trees(root, &mut truth)?;
    let records = records(root, &mut truth)?;
    if trees.is_empty() && records.is_empty() {
        return Ok(Some(truth).filter(|t| !t.notes.is_empty()));
    }
    let Some(commit) = choose(&trees, &records) else {
        truth.commits = trees.into_keys().collect();
        truth.note("listings of several commits, and no record of which was downloaded");
        return Ok(Some(truth));
    };
    // Records outlive their files: what was deleted is not mixed with anything.
    let there = |r: &Record| !matches!(root.resolve(&r.path), Ok(None));
    truth.mixed = records
        .iter()
        .filter(|r| r.commit != commit && !agrees(trees.get(&commit), &commit, r) && there(r))
        .map(|r| (r.path.clone(), r.commit.clone()))
        .collect();
    if let Some(tree) = trees.remove(&commit) {
        (truth.files, truth.lists_everything) = (tree.files, true);
    } else {
        for record in &records {
            truth.add(&record.path, record.expected())?;
        }
        truth.note(
            "no stored listing of the commit: sizes and files that are missing are not known",
        );
    }
    truth.commits = truth.mixed.iter().map(|(_, c)| c.clone()).chain([commit.clone()]).collect();
    truth.commits.sort_unstable();
    truth.commits.dedup();
    truth.commit = Some(commit);
    Ok(Some(truth))
}

/// Whether a file as it was recorded also belongs to `commit`: most files of two commits are equal.
fn agrees(tree: Option<&Truth>, commit: &str, record: &Record) -> bool {
    let Some(tree) = tree else { return record.commit == commit };
    let listed = tree.files.get(&record.path);
    record.digest.as_ref().is_some_and(|d| listed.is_some_and(|e| e.digests.contains(d)))
}

/// The commit that most records agree with; of equals the one with more records of its own, then
/// the latest. `None` if nothing tells several listings apart.
fn choose(trees: &Trees, records: &[Record]) -> Option<String> {
    if records.is_empty() {
        let only = trees.keys().next().filter(|_| trees.len() == 1);
        return only.cloned();
    }
    let mut counts: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
    for record in records {
        let (count, time) = counts.entry(&record.commit).or_insert((0, 0.0));
        (*count, *time) = (*count + 1, time.max(record.time));
    }
    for commit in trees.keys() {
        counts.entry(commit).or_insert((0, 0.0));
    }
    let mut candidates: Vec<(&str, (usize, f64))> = counts.into_iter().collect();
    candidates.sort_by_key(|(_, (count, _))| Reverse(*count));
    candidates.truncate(MAX_COMMITS);
    let disagreeing =
        |commit: &str| records.iter().filter(|r| !agrees(trees.get(commit), commit, r)).count();
    let best = candidates.into_iter().min_by(|(a, (own_a, time_a)), (b, (own_b, time_b))| {
        let by_fit = disagreeing(a).cmp(&disagreeing(b));
        by_fit.then(own_b.cmp(own_a)).then(time_b.total_cmp(time_a))
    });
    best.map(|(commit, _)| commit.to_owned())
}

/// A folder below the root, if it exists there.
fn subfolder(root: &Root, name: &str) -> Result<Option<Root>> {
    match root.resolve(name)? {
        Some(path) if small::is_folder(&path)? => Root::open(&path).map(Some),
        _ => Ok(None),
    }
}

fn trees(root: &Root, truth: &mut Truth) -> Result<Trees> {
    let mut trees = Trees::new();
    let Some(folder) = subfolder(root, &format!("{LOCAL}/trees"))? else { return Ok(trees) };
    let names = folder.names(0)?;
    let commits = names.iter().filter_map(|n| Some((n, commit_of(n.strip_suffix(".json")?)?)));
    let mut listed = 0;
    for (name, commit) in commits.take(MAX_TREES) {
        // What several listings hold together is bounded as one is.
        if listed > MAX_FILES {
            truth.note(format!("stored listing {name} is not used: there are too many"));
            continue;
        }
        if let Some(tree) = read_tree(&folder, name, truth)? {
            listed += tree.files.len();
            trees.insert(commit, tree);
        }
    }
    Ok(trees)
}

/// Reads a stored listing. One that is no listing is a note, one with hostile names an error.
fn read_tree(folder: &Root, name: &str, truth: &mut Truth) -> Result<Option<Truth>> {
    let Some(bytes) = read_regular(folder, name, MAX_TREE)? else { return Ok(None) };
    let text = String::from_utf8(bytes).map_err(|_| Error::invalid("not UTF-8 text"));
    match text.and_then(|text| Tree::parse(&text)) {
        Ok(tree) => {
            let path = folder.path().join(name);
            let mut listed = Truth::new(Kind::HubLocal, &path.to_string_lossy());
            tree.add_to(&mut listed).map_err(|e| e.at(path))?;
            Ok(Some(listed))
        }
        Err(error) => {
            truth.note(format!("stored listing {name} is not used: {}", error.message));
            Ok(None)
        }
    }
}

fn records(root: &Root, truth: &mut Truth) -> Result<Vec<Record>> {
    let Some(folder) = subfolder(root, &format!("{LOCAL}/download"))? else {
        return Ok(Vec::new());
    };
    let (mut records, mut damaged, mut undigested) = (Vec::new(), 0u64, 0u64);
    for name in folder.names(DEPTH)? {
        let Some(path) = name.strip_suffix(METADATA) else { continue };
        let bytes = match read_regular(&folder, &name, MAX_RECORD) {
            Ok(bytes) => bytes.unwrap_or_default(),
            Err(error) if error.kind == ErrorKind::Io => return Err(error),
            Err(error) => return Err(error.at(folder.path().join(&name))),
        };
        match std::str::from_utf8(&bytes).ok().and_then(|text| Record::parse(path, text)) {
            Some(record) => {
                undigested += u64::from(record.digest.is_none());
                records.push(record);
            }
            None => damaged += 1,
        }
    }
    if damaged > 0 {
        truth.note(format!("{damaged} damaged records of downloaded files are not used"));
    }
    if undigested > 0 {
        truth.note(format!("{undigested} records name no SHA-256 and no git object"));
    }
    Ok(records)
}

/// What the Hugging Face cache knows of this snapshot, if the folder is one.
pub(super) fn cache(root: &Root) -> Result<Option<Truth>> {
    if !root.is_hub_snapshot() {
        return Ok(None);
    }
    let snapshot = root.canonical();
    let Some(repository) = snapshot.parent().and_then(Path::parent) else { return Ok(None) };
    let repository = Root::open(repository)?;
    let mut truth = Truth::new(Kind::HubCache, &repository.path().to_string_lossy());
    truth.repository = repository.path().file_name().and_then(|n| repository_of(n.to_str()?));
    let commit = snapshot.file_name().and_then(|name| commit_of(name.to_str()?));
    if let Some(commit) = &commit
        && let Some(trees) = subfolder(&repository, "trees")?
        && let Some(tree) = read_tree(&trees, &format!("{commit}.json"), &mut truth)?
    {
        (truth.files, truth.lists_everything) = (tree.files, true);
    }
    truth.set_commit(commit);
    let blobs = repository.resolve("blobs")?;
    for name in root.names(DEPTH)? {
        if truth.files.contains_key(&name) {
            continue;
        }
        // A link that leads elsewhere, or nowhere, is a finding of whoever checks the file itself.
        let Ok(Some(path)) = root.resolve(&name) else { continue };
        if path.parent() != blobs.as_deref() {
            continue;
        }
        let etag = path.file_name().and_then(|name| name.to_str());
        let digests = etag.and_then(FileDigest::from_etag).into_iter().collect();
        truth.add(&name, Expected { size: None, digests, tensors: Vec::new() })?;
    }
    Ok(Some(truth))
}

/// `org/name` of a cache folder `models--org--name`.
fn repository_of(folder: &str) -> Option<String> {
    let name = folder.strip_prefix("models--")?;
    let name = name.split_once("--").map_or_else(|| name.to_owned(), |(o, n)| format!("{o}/{n}"));
    Some(name).filter(|name| !quoted(name).contains('\\'))
}
