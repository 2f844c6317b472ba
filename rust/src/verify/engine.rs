//! The verification itself: which files there should be, how large, with which bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::thread::ScopedJoinHandle;

use super::cut::Cut;
use super::diagnosis::{stand_in, start_of};
use super::digests::{self, Expected, Truth};
use super::findings::{Category, Finding, Findings, FromMemory, Report, UsedTruth, Verdict};
use super::reading::{FileJob, Pass, Reading, read_files};
use super::remake::Remake;
use super::selection::{Selection, Subset};
use super::state::{Remembering, SavedState};
use super::structure::{Structure, examine};
use super::{Level, edits, experts, folder};
use crate::catalog::{CONFIG, MANIFEST};
use crate::error::{Error, Kind, Result};
use crate::exec::Progress;
use crate::exec::publish::{SELF_ATTESTED, SUMS, sum_line};
use crate::experts::Survey;
use crate::io::{Mode, Root, small};
use crate::model::parallel::RankOnly;
use crate::threads;

/// Form of the report.
const SCHEMA: &str = "lingconv.verify/1";

/// What to verify, and how.
#[derive(Debug)]
pub struct Options {
    /// How much is checked.
    pub level: Level,
    /// Sources of truth; the first is the most trusted.
    pub truths: Vec<Truth>,
    /// What is wrong with sources of truth that the folder itself holds.
    pub damaged_truths: Vec<Finding>,
    /// Read only a share of the files.
    pub subset: Option<Subset>,
    /// Look only at files that match one of these globs; empty: all.
    pub files: Vec<String>,
    /// Look only at what these ranks need.
    pub rank: Option<RankOnly>,
    /// The source that the folder was made of, to hold it against.
    pub remake: Option<Remake>,
    /// Look at the weights of experts in the same pass, or why that cannot be done.
    pub experts: Option<Result<Survey>>,
    /// Notes fail the verification.
    pub strict: bool,
    /// A config.json that is not the published one is a note.
    pub allow_config_edits: bool,
    /// Threads that take what is read, each of two files at a time; 0: one a core.
    pub jobs: usize,
    /// How bulk data moves.
    pub io: Mode,
    /// How digests are remembered between runs; `None`: not at all.
    pub remembering: Option<Remembering>,
    /// Report the SHA-256 of every file looked at.
    pub sums: bool,
}

/// Verifies the folder `path`.
pub fn verify(path: &Path, options: &Options, progress: &Progress) -> Result<Report> {
    experts::check(options)?;
    let root = Root::open(path)?;
    let names = root.names(folder::DEPTH)?;
    let read = options.truths.iter().any(|t| t.kind == digests::Kind::Manifest);
    let told = options.truths.iter().find_map(|t| t.cut.clone());
    let cut = if read { told } else { Cut::read(&root)? };
    let selection = Selection::new(&options.files, options.rank, cut.as_ref(), &names)?;
    let selected = |name: &str| selection.has(name);
    let structure = examine(&root, &names, cut.as_ref(), &selected)?;
    let mut run = Verification { root, options, names, structure, findings: Findings::default() };
    run.findings = std::mem::take(&mut run.structure.findings);
    run.findings.extend(options.damaged_truths.iter().cloned());
    run.findings.extend(folder::leftovers(&run.root, &run.names)?);
    run.check_lists(&selected);
    let sound = run.check_sizes(&selected);
    let mut reading = run.read(sound, progress)?;
    let sums = std::mem::take(&mut reading.sums);
    let mut report = run.report(reading, &selected);
    report.sums = options.sums.then(|| text_of_sums(sums, &report));
    Ok(report)
}

/// Sums that `sha256sum -c` takes, marked as our own word unless a trusted source agreed.
fn text_of_sums(mut sums: Vec<(String, String)>, report: &Report) -> String {
    sums.sort_unstable();
    // That a source makes the same bytes again says nothing about the source.
    let told = |t: &UsedTruth| !t.self_attested && t.kind != digests::Kind::Source.to_string();
    let trusted = report.verdict == Verdict::Ok
        && report.uncovered.is_empty()
        && report.truths.iter().any(told);
    let mut text = if trusted { String::new() } else { SELF_ATTESTED.to_owned() };
    text.extend(sums.iter().map(|(name, sum)| sum_line(name, sum)));
    text
}

struct Verification<'a> {
    root: Root,
    options: &'a Options,
    names: Vec<String>,
    structure: Structure,
    findings: Findings,
}

/// Whether a file is the model's configuration, or a stage's copy of it.
fn is_config(name: &str) -> bool {
    name.rsplit('/').next() == Some(CONFIG)
}

/// Files that describe the folder and are in no source of truth about its content.
fn describes_the_folder(name: &str) -> bool {
    [MANIFEST, SUMS, "B3SUMS"].contains(&name)
}

impl Verification<'_> {
    fn expected<'t>(&'t self, name: &'t str) -> impl Iterator<Item = (&'t Truth, &'t Expected)> {
        self.options.truths.iter().filter_map(move |t| t.files.get(name).map(|e| (t, e)))
    }

    fn size(&self, name: &str) -> Option<u64> {
        let path = self.root.resolve(name).ok().flatten()?;
        small::size(&path).ok().flatten()
    }

    /// Missing and extra files, mixed revisions.
    fn check_lists(&mut self, selected: &dyn Fn(&str) -> bool) {
        let mut findings = std::mem::take(&mut self.findings);
        let present: BTreeSet<&str> = self.names.iter().map(String::as_str).collect();
        let required = &self.structure.required;
        for name in required.iter().filter(|n| selected(n)) {
            if !present.contains(name.as_str()) && !findings.has(name) {
                let message = "required, and not in the folder";
                findings.push(Finding::failure(Category::Missing, name, message));
            }
        }
        for truth in &self.options.truths {
            for name in truth.files.keys().filter(|n| selected(n)) {
                let hidden = name.split('/').any(|part| part.starts_with('.'));
                let absent = !present.contains(name.as_str()) && self.size(name).is_none();
                if absent && !hidden && !required.contains(name) {
                    let needed = folder::is_needed(name);
                    let message = format!("listed by {}, not in the folder", truth.origin);
                    let note = Finding::note(Category::Missing, name, message);
                    findings.push(Finding { failure: needed, ..note });
                }
            }
            for (name, commit) in &truth.mixed {
                let message = format!("of revision {commit}, other files are not");
                findings.push(Finding::failure(Category::MixedRevisions, name, message));
            }
        }
        if let Some(truth) = self.options.truths.iter().find(|t| t.lists_everything) {
            for name in present.iter().filter(|n| selected(n) && !describes_the_folder(n)) {
                if !truth.files.contains_key(*name) && !folder::is_leftover(name) {
                    let message = format!("not listed by {}", truth.origin);
                    findings.push(Finding::note(Category::Extra, *name, message));
                }
            }
        }
        self.findings = findings;
    }

    /// Compares sizes; the files that may be read are returned with their sizes.
    fn check_sizes(&mut self, selected: &dyn Fn(&str) -> bool) -> Vec<(String, u64)> {
        let mut sound = Vec::new();
        let mut findings = std::mem::take(&mut self.findings);
        for name in self.names.iter().filter(|n| selected(n) && !folder::is_leftover(n)) {
            // What is known already says more: a pointer, an error page, a cut header.
            let told = findings.has_failed(name);
            let Some(size) = self.size(name) else {
                if !told {
                    findings.push(Finding::failure(Category::Unreadable, name, "cannot be opened"));
                }
                continue;
            };
            let mut sizes = self.expected(name).filter_map(|(t, e)| Some((t, e.size?)));
            let wrong = sizes.find(|(_, s)| *s != size).map(|(t, s)| (t.origin.clone(), s));
            match wrong {
                Some((origin, wanted)) if self.options.level >= Level::Sizes => {
                    if !told {
                        findings.push(self.size_finding(name, size, wanted, &origin));
                    }
                }
                _ => sound.push((name.clone(), size)),
            }
        }
        self.findings = findings;
        sound
    }

    fn size_finding(&self, name: &str, size: u64, wanted: u64, origin: &str) -> Finding {
        let message = format!("{size} bytes, {wanted} by {origin}");
        let start = self.root.file(name).ok().and_then(|file| start_of(&file));
        let category = start.and_then(|(start, _)| stand_in(&start));
        let by_size = match size < wanted {
            _ if is_config(name) => Category::ConfigEdited,
            true => Category::Truncated,
            false => Category::Size,
        };
        Finding::failure(category.unwrap_or(by_size), name, message)
    }

    /// The files that the level asks to be read, the largest first.
    fn jobs(&self, sound: Vec<(String, u64)>) -> Vec<FileJob<'_>> {
        let content = self.options.level == Level::Content;
        if self.options.level < Level::Checksums {
            return Vec::new();
        }
        let shards: BTreeMap<&str, _> =
            self.structure.shards.iter().map(|s| (s.name.as_str(), s)).collect();
        let mut jobs = Vec::new();
        let sound = match self.options.subset {
            Some(subset) => subset.of(sound),
            None => sound,
        };
        for (name, size) in sound {
            let expected: Vec<&Expected> = self.expected(&name).map(|(_, e)| e).collect();
            let digests = expected.iter().flat_map(|e| e.digests.clone()).collect::<Vec<_>>();
            let scanned = content && shards.contains_key(name.as_str());
            let sum = self.options.sums;
            let survey = self.options.experts.as_ref().and_then(|s| s.as_ref().ok());
            let survey = survey.filter(|survey| survey.wants(&name));
            let unread = digests.is_empty() && !scanned && !sum && survey.is_none();
            if unread && !self.is_remade(&name) {
                continue;
            }
            let tensors = expected.iter().flat_map(|e| e.tensors.clone()).collect();
            let shard =
                shards.get(name.as_str()).copied().filter(|_| !self.findings.has_of_header(&name));
            let content = scanned;
            jobs.push(FileJob { name, size, digests, tensors, shard, content, sum, survey });
        }
        jobs.sort_by_key(|j| std::cmp::Reverse(j.size));
        jobs
    }

    fn is_remade(&self, name: &str) -> bool {
        self.options.remake.as_ref().is_some_and(|remake| remake.makes(name))
    }

    /// Reads what the level asks for, each file once.
    fn read(&self, sound: Vec<(String, u64)>, progress: &Progress) -> Result<Reading> {
        let (remade, plain): (Vec<_>, Vec<_>) =
            self.jobs(sound).into_iter().partition(|job| self.is_remade(&job.name));
        let total = plain.iter().map(|j| j.size).sum();
        progress.total.store(total, Ordering::Relaxed);
        let mut reading = self.read_plain(&plain, progress)?;
        reading.asked = plain.len() + remade.len();
        if let Some(remake) = &self.options.remake {
            reading.merge(remake.compare(&self.root, remade, self.options, progress)?);
        }
        Ok(reading)
    }

    fn read_plain(&self, jobs: &[FileJob], progress: &Progress) -> Result<Reading> {
        let remembering = self.options.remembering.as_ref();
        let saved = remembering.map(|r| SavedState::open(r, self.root.path(), progress));
        let count = match self.options.jobs {
            0 => std::thread::available_parallelism().map_or(2, usize::from),
            jobs => jobs,
        };
        let pass = Pass { root: &self.root, io: self.options.io, saved: saved.as_ref(), progress };
        let queue = Mutex::new(jobs.iter());
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let read = || read_files(pass, next).inspect_err(|_| progress.set_halt(true));
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..count)
                .map(|_| threads::spawn(scope, read))
                .map(|w| w.inspect_err(|_| progress.set_halt(true)))
                .collect();
            let panicked = || Err(Error::internal("a reading thread panicked"));
            let join =
                |worker: Result<ScopedJoinHandle<_>>| worker?.join().unwrap_or_else(|_| panicked());
            let joined: Vec<Result<Reading>> = workers.into_iter().map(join).collect();
            let mut reading = Reading::default();
            let mut failed = None;
            for one in joined {
                match one {
                    Ok(read) => reading.merge(read),
                    // What stopped the others comes before their being stopped.
                    Err(e) if e.kind != Kind::Cancelled => return Err(e),
                    Err(e) => failed = Some(e),
                }
            }
            reading.forgetful = saved.as_ref().and_then(SavedState::problem);
            failed.map_or(Ok(reading), Err)
        })
    }

    fn report(mut self, mut reading: Reading, selected: &dyn Fn(&str) -> bool) -> Report {
        // Threads end in any order; which findings are told must not depend on it.
        reading.findings.sort_by(|a, b| a.file.cmp(&b.file));
        let mut findings = std::mem::take(&mut self.findings);
        findings.extend(reading.findings);
        let (mut findings, mut left_out) = findings.finish();
        for more in &mut left_out {
            more.failure |= self.options.strict;
        }
        let survey = self.options.experts.as_ref();
        let experts = survey.and_then(|s| experts::judge(s, self.root.path(), &mut findings));
        for finding in &mut findings {
            if is_config(&finding.file) && finding.category == Category::Checksum {
                finding.category = Category::ConfigEdited;
            }
            if finding.category == Category::ConfigEdited {
                let words = edits::words(&self.root, &finding.file, &self.options.truths);
                finding.message = format!("{}; {words}", finding.message);
            }
            finding.failure = match finding.category {
                Category::ConfigEdited => !self.options.allow_config_edits,
                _ => finding.failure || self.options.strict,
            };
        }
        findings.sort_by(|a, b| {
            (!a.failure, &a.file, a.category).cmp(&(!b.failure, &b.file, b.category))
        });
        findings.dedup();
        let files: Vec<&String> = self.names.iter().filter(|n| selected(n)).collect();
        let uncovered = files.iter().filter(|n| !self.is_covered(n) && !describes_the_folder(n));
        Report {
            schema: SCHEMA,
            verdict: self.verdict(&findings, reading.verified),
            level: self.options.level,
            truths: self.options.truths.iter().map(|t| self.used(t)).collect(),
            files: files.len(),
            verified: reading.verified,
            resumed: reading.resumed,
            memory: FromMemory {
                files: reading.resumed,
                of: reading.asked,
                oldest_seconds: reading.oldest.map(|age| age.as_secs()),
                problem: reading.forgetful,
            },
            bytes: reading.bytes,
            uncovered: uncovered.map(|n| (*n).clone()).collect(),
            findings,
            left_out,
            experts,
            sums: None,
        }
    }

    /// What the findings say where the digests of `verified` files agreed. A file that was too large to
    /// look into is sound only if its digest is.
    fn verdict(&self, findings: &[Finding], verified: usize) -> Verdict {
        let compared = self.options.level >= Level::Checksums;
        let untold = |f: &Finding| {
            f.category == Category::TooLarge && !(compared && self.is_covered(&f.file))
        };
        if findings.iter().any(|f| f.failure) {
            Verdict::Failed
        } else if compared && verified == 0 || findings.iter().any(untold) {
            Verdict::Unverifiable
        } else {
            Verdict::Ok
        }
    }

    fn is_covered(&self, name: &str) -> bool {
        self.is_remade(name) || self.expected(name).any(|(_, e)| !e.digests.is_empty())
    }

    fn used(&self, truth: &Truth) -> UsedTruth {
        UsedTruth {
            kind: truth.kind.to_string(),
            origin: truth.origin.clone(),
            commit: truth.commit.clone(),
            repository: truth.repository.clone(),
            covers: self.names.iter().filter(|n| truth.files.contains_key(*n)).count(),
            self_attested: truth.self_attested,
            notes: truth.notes.clone(),
        }
    }
}
