//! The one error of the core: a category the user can act on, and where it happened.
//!
//! Messages name the file and the tensor through fields, never end in a full stop and never say
//! how the core is called. The category decides the process's exit code.

use std::fmt;
use std::path::PathBuf;

use rustix::io::Errno;

/// Result of every fallible function of the core.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a user can do about an error; each kind has one documented exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A bug in lingconv.
    Internal,
    /// The request itself makes no sense (unmatched pattern, target inside source).
    Usage,
    /// A comparison found a difference.
    Check,
    /// The checkpoint is unreadable or breaks its format.
    Invalid,
    /// A weight to be encoded is NaN or infinite.
    NonFinite,
    /// The request is clear, but this checkpoint cannot be turned into that, or is above a bound of
    /// this version.
    Impossible,
    /// Not enough disk space, inodes or memory.
    Space,
    /// The output belongs to something else, or another process holds it.
    Foreign,
    /// Reading or writing failed midway; a second run continues.
    Io,
    /// Nothing to compare with.
    Unverifiable,
    /// The run was told to stop; a second run continues.
    Cancelled,
}

impl Kind {
    /// The process exit code of this kind (130 for a cancelled run; the caller knows the signal).
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Internal => 1,
            Self::Usage => 2,
            Self::Check => 3,
            Self::Invalid | Self::NonFinite => 4,
            Self::Impossible => 5,
            Self::Space => 6,
            Self::Foreign => 7,
            Self::Io => 8,
            Self::Unverifiable => 9,
            Self::Cancelled => 130,
        }
    }

    /// Stable lower-case word for machine-readable output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Usage => "usage",
            Self::Check => "check",
            Self::Invalid => "invalid",
            Self::NonFinite => "nonfinite",
            Self::Impossible => "impossible",
            Self::Space => "space",
            Self::Foreign => "foreign",
            Self::Io => "io",
            Self::Unverifiable => "unverifiable",
            Self::Cancelled => "cancelled",
        }
    }
}

/// An error with its place and, where one is known, the command or step that helps.
#[derive(Debug, Clone, thiserror::Error)]
pub struct Error {
    /// Category, and with it the exit code.
    pub kind: Kind,
    /// What is wrong, with its numbers.
    pub message: String,
    /// Single findings below the message, one a line.
    pub details: Vec<String>,
    /// File concerned.
    pub path: Option<PathBuf>,
    /// Tensor concerned.
    pub tensor: Option<String>,
    /// One command to run or thing to change.
    pub hint: Option<String>,
}

/// What helps where there is no memory.
pub(crate) const MORE_MEMORY: &str = "raise the limit of memory (`ulimit -v`), or use fewer jobs";

/// Longest message in bytes; what quotes untrusted text may have megabytes.
const MAX_MESSAGE: usize = 4_096;
/// Longest list of details that is printed in full.
const MAX_DETAILS: usize = 20;

impl Error {
    /// An error of `kind` with nothing but a message.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: clipped(message.into()),
            details: Vec::new(),
            path: None,
            tensor: None,
            hint: None,
        }
    }

    /// [`Kind::Invalid`]: the checkpoint breaks its format.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// [`Kind::Impossible`]: the plan cannot be made.
    pub fn impossible(message: impl Into<String>) -> Self {
        Self::new(Kind::Impossible, message)
    }

    /// [`Kind::Impossible`]: what is perhaps sound is `what`, more than this version takes.
    pub fn too_large(what: impl fmt::Display) -> Self {
        Self::impossible(format!("too large for this version of lingconv: {what}"))
    }

    /// [`Kind::Usage`]: the request makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// [`Kind::Internal`]: a broken invariant of lingconv itself.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// [`Kind::Cancelled`].
    pub fn cancelled() -> Self {
        Self::new(Kind::Cancelled, "stopped on request")
    }

    /// A failed system call: what is full or limited is [`Kind::Space`], the rest [`Kind::Io`].
    pub fn io(action: &str, path: impl Into<PathBuf>, source: &std::io::Error) -> Self {
        use std::io::ErrorKind::{FileTooLarge, OutOfMemory, QuotaExceeded, StorageFull};
        let limit = match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::MFILE) => Some("raise the limit of open files (`ulimit -n`)"),
            Some(Errno::NFILE) => Some("raise the system's limit of open files (fs.file-max)"),
            Some(Errno::FBIG) => {
                Some("raise the limit of file sizes (`ulimit -f`), or use another file system")
            }
            Some(Errno::NOMEM) => Some(MORE_MEMORY),
            _ => None,
        };
        let full =
            matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge | OutOfMemory);
        let kind = if full || limit.is_some() { Kind::Space } else { Kind::Io };
        let error = Self::new(kind, format!("{action}: {source}")).at(path);
        limit.map_or(error.clone(), |limit| error.hint(limit))
    }

    /// Whether the machine failed, and nothing is known of what was looked at.
    pub fn is_of_the_machine(&self) -> bool {
        matches!(self.kind, Kind::Io | Kind::Space)
    }

    /// What a failure says of the file that it came from.
    ///
    /// # Errors
    /// The failure itself where it says nothing of a file: a limit of this process, its being
    /// stopped, a bug.
    pub fn about_file(self) -> Result<Self> {
        match self.kind {
            Kind::Space | Kind::Cancelled | Kind::Internal => Err(self),
            _ => Ok(self),
        }
    }

    /// Names the file.
    #[must_use]
    pub fn at(mut self, path: impl Into<PathBuf>) -> Self {
        self.path.get_or_insert(path.into());
        self
    }

    /// Names the tensor.
    #[must_use]
    pub fn tensor(mut self, name: impl Into<String>) -> Self {
        self.tensor.get_or_insert(name.into());
        self
    }

    /// Adds the step that helps.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert(hint.into());
        self
    }

    /// Adds single findings, capped at 20 with a count of the rest.
    #[must_use]
    pub fn details(mut self, mut details: Vec<String>) -> Self {
        let rest = details.len().saturating_sub(MAX_DETAILS);
        details.truncate(MAX_DETAILS);
        if rest > 0 {
            details.push(format!("… and {rest} more"));
        }
        self.details = details.into_iter().map(clipped).collect();
        self
    }
}

/// The longest beginning of `text` that has at most `most` bytes.
pub(crate) fn beginning(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A text for people, cut where it is longer than any that is meant for them.
pub(crate) fn clipped(mut text: String) -> String {
    if text.len() > MAX_MESSAGE {
        text.truncate(beginning(&text, MAX_MESSAGE).len());
        text.shrink_to_fit();
        text.push('…');
    }
    text
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(tensor) = &self.tensor {
            write!(f, " in {tensor}")?;
        }
        if let Some(path) = &self.path {
            write!(f, " ({})", path.display())?;
        }
        for detail in &self.details {
            write!(f, "\n  {detail}")?;
        }
        Ok(())
    }
}
