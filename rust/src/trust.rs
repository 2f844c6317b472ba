//! `--verify-source`: what is known of a source before it is converted.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::{CONFIG, Catalog};
use crate::error::{Error, Kind, Result};
use crate::exec::Progress;
use crate::exec::attest::Known;
use crate::io::Mode;
use crate::plan::{Plan, SidecarContent};
use crate::verify::digests::{Algorithm, Truth, detect};
use crate::verify::{self, Level, Options, Verdict};

/// Finds the digests that a download left for every shard that `plan` reads, and compares the small
/// files now; the shards are compared while they are converted.
///
/// # Errors
/// [`Kind::Unverifiable`] if a shard has no SHA-256 to compare with, [`Kind::Check`] if what is
/// known contradicts itself or a small file is not what it should be.
pub fn known_sources(catalog: &Catalog, plan: &Plan, progress: &Progress) -> Result<Known> {
    if catalog.pieces.is_some() {
        return Err(Error::usage("--verify-source knows no digests of a checkpoint in pieces")
            .at(catalog.root.path())
            .hint("check the folder itself first: `lingconv verify`"));
    }
    let truths = detect(&catalog.root)?;
    let read: BTreeSet<u32> =
        plan.tasks.iter().flat_map(|t| &t.steps).flat_map(|s| catalog.files_of(s.source)).collect();
    let names: Vec<&str> = read.iter().map(|file| catalog.file(*file).0).collect();
    let mut known = Known::default();
    let mut used: BTreeMap<String, usize> = BTreeMap::new();
    let mut uncovered = Vec::new();
    for name in &names {
        match digest_of(catalog, &truths, name)? {
            Some((truth, hex)) => {
                *used.entry(words(truth)).or_default() += 1;
                known.sha256.insert((*name).to_owned(), hex);
            }
            None => uncovered.push((*name).to_owned()),
        }
    }
    if !uncovered.is_empty() {
        return Err(Error::new(
            Kind::Unverifiable,
            format!(
                "{} of {} shards have no SHA-256 to compare with",
                uncovered.len(),
                names.len()
            ),
        )
        .at(catalog.root.path())
        .details(uncovered)
        .hint("put a SHA256SUMS file into the folder, or leave out --verify-source"));
    }
    known.origin = used.keys().cloned().collect::<Vec<_>>().join("; ");
    for (origin, files) in &used {
        progress.note(format!("verifying {files} source files by {origin}"));
    }
    check_small_files(catalog, plan, truths)?;
    Ok(known)
}

/// What a download left about the files of a source: nothing is compared, and what contradicts
/// itself is not known.
///
/// # Errors
/// Those of reading: whether a disk answered must not be seen in an output.
pub fn known_files(catalog: &Catalog) -> Result<Known> {
    let truths = match detect(&catalog.root) {
        Err(error) if error.is_of_the_machine() => return Err(error),
        found => found.or_else(|error| error.about_file().map(|_| Vec::new()))?,
    };
    let mut known = Known::default();
    let mut origins = BTreeSet::new();
    for file in 0..catalog.file_count() {
        let (name, _) = catalog.file(file);
        if let Ok(Some((truth, hex))) = digest_of(catalog, &truths, name) {
            origins.insert(words(truth));
            known.sha256.insert(name.to_owned(), hex);
        }
    }
    known.origin = origins.into_iter().collect::<Vec<_>>().join("; ");
    Ok(known)
}

/// The SHA-256 that the sources of truth give for a file.
fn digest_of<'t>(
    catalog: &Catalog,
    truths: &'t [Truth],
    name: &str,
) -> Result<Option<(&'t Truth, String)>> {
    let at = |what: String| Error::new(Kind::Check, what).at(catalog.root.path().join(name));
    let mut found: Option<(&Truth, String)> = None;
    for truth in truths {
        if let Some((_, commit)) = truth.mixed.iter().find(|(mixed, _)| mixed == name) {
            return Err(at(format!("the shard is of revision {commit}, other files are not"))
                .hint("download one revision into an empty folder"));
        }
        let digests = truth.files.get(name).map_or(&[][..], |e| &e.digests);
        let Some(digest) = digests.iter().find(|d| d.algorithm == Algorithm::Sha256) else {
            continue;
        };
        match &found {
            Some((first, hex)) if *hex != digest.hex => {
                return Err(at(format!(
                    "{} and {} give different digests",
                    words(first),
                    words(truth)
                )));
            }
            Some(_) => {}
            None => found = Some((truth, digest.hex.clone())),
        }
    }
    Ok(found)
}

fn words(truth: &Truth) -> String {
    let commit = truth.commit.as_ref().map(|c| format!(" at revision {c}")).unwrap_or_default();
    let own = if truth.self_attested { ", self-attested" } else { "" };
    format!("{}{commit}{own}", truth.origin)
}

/// Compares config.json and everything that is carried over.
fn check_small_files(catalog: &Catalog, plan: &Plan, truths: Vec<Truth>) -> Result<()> {
    let carried = plan.sidecars.iter().filter_map(|s| match &s.content {
        SidecarContent::Source(name) => Some(name.as_str()),
        SidecarContent::Bytes(_) => None,
    });
    let mut names: BTreeSet<&str> = carried.collect();
    names.extend(catalog.config.as_ref().map(|_| CONFIG));
    if names.is_empty() {
        return Ok(());
    }
    let options = Options {
        level: Level::Checksums,
        truths,
        damaged_truths: Vec::new(),
        subset: None,
        files: names.iter().map(|name| globset::escape(name)).collect(),
        rank: None,
        remake: None,
        experts: None,
        strict: false,
        allow_config_edits: false,
        jobs: 1,
        io: Mode::Buffered,
        remembering: None,
        sums: false,
    };
    let report = verify::verify(catalog.root.path(), &options, &Progress::default())?;
    let failed = report.findings.iter().filter(|f| f.failure && names.contains(f.file.as_str()));
    let lines: Vec<String> = failed.map(|f| format!("{}: {}", f.file, f.message)).collect();
    if report.verdict != Verdict::Failed || lines.is_empty() {
        return Ok(());
    }
    Err(Error::new(Kind::Check, format!("{} small files are not what they should be", lines.len()))
        .at(catalog.root.path())
        .details(lines)
        .hint("download them again; `lingconv verify` says more"))
}
