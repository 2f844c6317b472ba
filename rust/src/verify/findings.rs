//! What `verify` finds, in categories that tell a user what to do.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::error::{Error, Kind, clipped};
use crate::experts;

/// Kind of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Category {
    /// Right size, wrong bytes.
    Checksum,
    /// Not the bytes that the plan makes of the source.
    Difference,
    /// Another size than the source of truth says.
    Size,
    /// Shorter than its own header or the source of truth says.
    Truncated,
    /// A required file is not there.
    Missing,
    /// A git-lfs pointer in place of the data.
    LfsPointer,
    /// A web page or an error message in place of the data.
    ErrorPage,
    /// The header is zeros: space was reserved, nothing was written.
    ZeroedHeader,
    /// The header breaks the format.
    Header,
    /// The index and the shards contradict one another.
    Index,
    /// A tensor lies in two shards.
    Duplicate,
    /// A scale is missing, or of the wrong shape, dtype or value.
    Scale,
    /// config.json contradicts the tensors.
    Config,
    /// config.json is not the published one.
    ConfigEdited,
    /// Files are of different revisions.
    MixedRevisions,
    /// A source of truth in the folder is damaged, so what it covers cannot be checked.
    DamagedTruth,
    /// NaN or infinity.
    NonFinite,
    /// A tensor of zeros.
    ZeroTensor,
    /// A long run of zeros inside a tensor.
    ZeroRange,
    /// An expert or a gate row that is unlike the others, or why none could be looked at.
    Expert,
    /// What a broken download leaves.
    Leftover,
    /// A file that the source of truth does not list.
    Extra,
    /// A format that executes code when it is loaded; never opened.
    UnsafeFormat,
    /// The file could not be read.
    Unreadable,
    /// Larger than what this version looks into; perhaps sound.
    TooLarge,
}

/// One thing found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Kind.
    pub category: Category,
    /// File, relative to the folder.
    pub file: String,
    /// Tensor, where one can be named.
    pub tensor: Option<String>,
    /// What is wrong, with its numbers.
    pub message: String,
    /// Whether it fails the verification; otherwise it is a note.
    pub failure: bool,
}

impl Finding {
    /// A finding that fails the verification.
    pub fn failure(
        category: Category,
        file: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        let message = clipped(message.into());
        Self { category, file: file.into(), tensor: None, message, failure: true }
    }

    /// A finding that does not.
    pub fn note(category: Category, file: impl Into<String>, message: impl Into<String>) -> Self {
        Self { failure: false, ..Self::failure(category, file, message) }
    }

    /// What `error` says of `file`: that it fails as `category`, or that it was too large to tell.
    pub fn of(category: Category, file: impl Into<String>, error: Error) -> Self {
        let found = match error.kind {
            Kind::Impossible => Self::note(Category::TooLarge, file, error.message),
            _ => Self::failure(category, file, error.message),
        };
        Self { tensor: error.tensor, ..found }
    }

    /// Names the tensor.
    #[must_use]
    pub fn tensor(mut self, name: impl Into<String>) -> Self {
        self.tensor = Some(name.into());
        self
    }
}

/// Most findings of a kind that are told one by one; the others are counted.
const MAX_TOLD: usize = 1_000;

/// Findings in the order they were made: of each kind the first ones, and how many there are.
#[derive(Debug, Default)]
pub struct Findings {
    told: Vec<Finding>,
    counts: BTreeMap<(Category, bool), usize>,
    /// Files that anything was found of, told or not.
    files: HashMap<String, Known>,
}

/// What was found of a file.
#[derive(Debug, Default, Clone, Copy)]
struct Known {
    failed: bool,
    header: bool,
}

/// Findings of a kind that are counted only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Kind.
    pub category: Category,
    /// Whether they fail the verification.
    pub failure: bool,
    /// How many.
    pub count: usize,
}

impl Findings {
    /// Takes one more.
    pub fn push(&mut self, finding: Finding) {
        let known = match self.files.get_mut(&finding.file) {
            Some(known) => known,
            None => self.files.entry(finding.file.clone()).or_default(),
        };
        known.failed |= finding.failure;
        known.header |= finding.category == Category::Header;
        let count = self.counts.entry((finding.category, finding.failure)).or_default();
        *count += 1;
        if *count <= MAX_TOLD {
            self.told.push(finding);
        }
    }

    /// Whether anything was found of `file`.
    pub fn has(&self, file: &str) -> bool {
        self.files.contains_key(file)
    }

    /// Whether `file` failed.
    pub fn has_failed(&self, file: &str) -> bool {
        self.files.get(file).is_some_and(|known| known.failed)
    }

    /// Whether anything was found of the header of `file`.
    pub fn has_of_header(&self, file: &str) -> bool {
        self.files.get(file).is_some_and(|known| known.header)
    }

    /// Those that are told, and how many are not.
    pub fn finish(self) -> (Vec<Finding>, Vec<LeftOut>) {
        let left_out = self.counts.into_iter().filter(|(_, count)| *count > MAX_TOLD);
        let left_out = left_out.map(|((category, failure), count)| LeftOut {
            category,
            failure,
            count: count - MAX_TOLD,
        });
        (self.told, left_out.collect())
    }
}

impl Extend<Finding> for Findings {
    fn extend<T: IntoIterator<Item = Finding>>(&mut self, findings: T) {
        findings.into_iter().for_each(|finding| self.push(finding));
    }
}

/// What a verification says in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Everything that was to be checked is as it should be.
    Ok,
    /// At least one finding fails the verification.
    Failed,
    /// Nothing was wrong, but there was no digest to compare with.
    Unverifiable,
}

/// A source of truth that was used.
#[derive(Debug, Clone, Serialize)]
pub struct UsedTruth {
    /// Kind in words.
    pub kind: String,
    /// File or address it came from.
    pub origin: String,
    /// Revision, where it is known.
    pub commit: Option<String>,
    /// `org/name`, where it is known.
    pub repository: Option<String>,
    /// Files of this folder that it covers.
    pub covers: usize,
    /// Whether it is lingconv's own word alone.
    pub self_attested: bool,
    /// What to know about it.
    pub notes: Vec<String>,
}

/// What was not read in this run, because an earlier one had read it.
#[derive(Debug, Serialize)]
pub struct FromMemory {
    /// Files whose bytes were not read.
    pub files: usize,
    /// Files that were to be read.
    pub of: usize,
    /// How long ago the first of them was read.
    pub oldest_seconds: Option<u64>,
    /// Why what this run read is not remembered, or what was is forgotten.
    pub problem: Option<String>,
}

/// Everything that a verification found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Form of this report.
    pub schema: &'static str,
    /// What it says.
    pub verdict: Verdict,
    /// Level reached.
    pub level: super::Level,
    /// Sources of truth, in the order they were found.
    pub truths: Vec<UsedTruth>,
    /// Files looked at.
    pub files: usize,
    /// Files whose digest was compared and agreed.
    pub verified: usize,
    /// Files taken over from an earlier verification.
    pub resumed: usize,
    /// What rests on these.
    pub memory: FromMemory,
    /// Bytes read in this run.
    pub bytes: u64,
    /// Files that no source of truth covers.
    pub uncovered: Vec<String>,
    /// Findings, failures first.
    pub findings: Vec<Finding>,
    /// Findings of kinds that there are too many of.
    pub left_out: Vec<LeftOut>,
    /// What the weights of experts tell, where that was asked and could be told.
    pub experts: Option<experts::Report>,
    /// Text for `sha256sum -c`, where that was asked.
    pub sums: Option<String>,
}
