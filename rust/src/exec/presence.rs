//! Who is at work on an output folder.
//!
//! Every process that works on an output shares the lock of `.lingconv/lock`; whoever publishes,
//! finishes by hand or begins anew wants it alone. A worker gives its share back before it looks
//! whether all is done: of two that end together one at least sees all records and nobody at work.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::journal;
use crate::error::{Error, Kind, Result};
use crate::io::lock::{Lock, Share, is_still, lock, open_own};
use crate::io::small;

/// Longest wait for a process that is publishing; it writes small files alone.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time between two looks.
const STEP: Duration = Duration::from_millis(20);

/// A process's share of an output folder, until it is dropped.
#[derive(Debug)]
pub struct Presence {
    file: File,
    path: PathBuf,
}

impl Presence {
    /// Shares the output with other workers. [`Kind::Foreign`] if somebody has it alone.
    pub fn enter(output: &Path) -> Result<Self> {
        let until = Instant::now() + PATIENCE;
        loop {
            let presence = Self::open(output)?;
            match lock(&presence.file, Share::Shared, &presence.path)? {
                Lock::Busy if Instant::now() >= until => return Err(presence.busy()),
                Lock::Busy => std::thread::sleep(STEP),
                // The folder of the lock goes when an output is published.
                Lock::Held | Lock::Unsupported if is_still(&presence.file, &presence.path)? => {
                    return Ok(presence);
                }
                Lock::Held | Lock::Unsupported => {}
            }
        }
    }

    /// Has the output alone. [`Kind::Foreign`] if anybody is at work on it.
    pub fn alone(output: &Path) -> Result<Self> {
        loop {
            let presence = Self::open(output)?;
            match lock(&presence.file, Share::Exclusive, &presence.path)? {
                Lock::Busy => return Err(presence.busy()),
                Lock::Held | Lock::Unsupported if is_still(&presence.file, &presence.path)? => {
                    return Ok(presence);
                }
                // Somebody published in this moment: the lock is that of a folder that is gone.
                Lock::Held | Lock::Unsupported => {}
            }
        }
    }

    fn open(output: &Path) -> Result<Self> {
        let folder = journal::folder(output);
        small::create_folder(&folder)?;
        let path = folder.join(journal::LOCK);
        Ok(Self { file: open_own(&path)?, path })
    }

    /// Gives the share back; the end of the work on the output's files.
    pub fn leave(&self) -> Result<()> {
        lock(&self.file, Share::Unlocked, &self.path).map(drop)
    }

    /// After [`Self::leave`]: tries to have the output alone, without waiting.
    pub fn try_alone(&self) -> Result<Lock> {
        lock(&self.file, Share::Exclusive, &self.path)
    }

    fn busy(&self) -> Error {
        Error::new(Kind::Foreign, "another process is at work on this output")
            .at(&self.path)
            .hint("wait for it or stop it, then run the same command again")
    }
}
