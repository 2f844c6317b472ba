//! What a run tells its caller while it works, and how it is told to stop.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::Serialize;

use crate::io::link::Linked;

/// Shared between the threads of a run and its caller; every field may be read at any time.
#[derive(Debug, Default)]
pub struct Progress {
    /// Set by the caller to stop the run: no new I/O is started, then the threads end.
    pub cancel: AtomicBool,
    /// Set by the run itself to stop its other jobs after one has failed.
    halt: AtomicBool,
    /// Bytes of output this run has to produce.
    pub total: AtomicU64,
    /// Bytes of output handed to the file system, what an earlier run had recorded included.
    pub written: AtomicU64,
    /// Bytes of output that an earlier run had recorded.
    pub resumed: AtomicU64,
    /// Bytes read from source files by this run.
    pub read: AtomicU64,
    /// Bytes of these that were read once more for the digests of source files.
    pub reread: AtomicU64,
    /// Files being written or synced now.
    busy: Mutex<Vec<String>>,
    /// What the user should know, as it happens.
    notes: Mutex<Vec<String>>,
    linked: Mutex<LinkedFiles>,
}

/// Files that were linked instead of written.
#[derive(Debug, Clone, Default, Serialize)]
pub struct LinkedFiles {
    /// How many, by what was made.
    pub files: BTreeMap<Linked, u64>,
    /// Those of them whose digest nobody knows.
    pub undigested: u64,
}

impl Progress {
    /// Whether to stop, for whichever reason.
    pub(crate) fn stopped(&self) -> bool {
        self.cancel.load(Ordering::Relaxed) || self.halt.load(Ordering::Relaxed)
    }

    pub(crate) fn set_halt(&self, halt: bool) {
        self.halt.store(halt, Ordering::Relaxed);
    }

    /// Files that the run is working on or waiting for.
    pub fn busy(&self) -> Vec<String> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the notes that came up since the last call.
    pub fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn note(&self, text: String) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    /// What has been linked.
    pub fn linked(&self) -> LinkedFiles {
        self.linked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn add_linked(&self, linked: Linked, digested: bool) {
        let mut all = self.linked.lock().unwrap_or_else(PoisonError::into_inner);
        *all.files.entry(linked).or_default() += 1;
        all.undigested += u64::from(!digested);
    }

    pub(crate) fn begin(&self, name: &str) {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_owned());
    }

    pub(crate) fn end(&self, name: &str) {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(i) = busy.iter().position(|n| n == name) {
            busy.swap_remove(i);
        }
    }

    pub(crate) fn begin_counting(&self, total: u64, resumed: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.written.store(resumed, Ordering::Relaxed);
        self.resumed.store(resumed, Ordering::Relaxed);
    }

    pub(crate) fn add_written(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_resumed(&self, bytes: u64) {
        self.resumed.fetch_add(bytes, Ordering::Relaxed);
        self.add_written(bytes);
    }
}
