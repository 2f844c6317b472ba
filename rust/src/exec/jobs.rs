//! Tasks on plain threads, several at a time.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::thread::ScopedJoinHandle;

use super::progress::Progress;
use crate::error::{Error, Kind, Result};
use crate::threads;

/// Does `work` for every item of `queue`, `jobs` at a time. The first failure stops the others.
pub(super) fn run_jobs(
    jobs: usize,
    queue: VecDeque<usize>,
    progress: &Progress,
    work: impl Fn(usize) -> Result<()> + Sync,
) -> Result<()> {
    let queue = Mutex::new(queue);
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let fail = |error: Error| {
        let mut first = failure.lock().unwrap_or_else(PoisonError::into_inner);
        if first.as_ref().is_none_or(|e| e.kind == Kind::Cancelled) {
            *first = Some(error);
        }
        progress.set_halt(true);
    };
    let job = || {
        while !progress.stopped() {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(index) = next else { return };
            let Err(error) = work(index) else { continue };
            fail(error);
        }
    };
    std::thread::scope(|scope| {
        let started = (0..jobs).map(|_| threads::spawn(scope, job));
        let jobs: Vec<_> = started.filter_map(|job| job.map_err(fail).ok()).collect();
        let joined: Vec<_> = jobs.into_iter().map(ScopedJoinHandle::join).collect();
        if joined.iter().any(std::result::Result::is_err) {
            return Err(Error::internal("a job's thread panicked"));
        }
        Ok(())
    })?;
    progress.set_halt(false);
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None if progress.stopped() => Err(Error::cancelled()),
        None => Ok(()),
    }
}
