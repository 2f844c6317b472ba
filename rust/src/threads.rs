//! Threads whose start can fail: a limit of the system is the user's to raise, never a panic.

use std::sync::mpsc::channel;
use std::thread::{Builder, Scope, ScopedJoinHandle};

use crate::error::{Error, Kind, Result};
use crate::memory;

/// The stack of a thread, and what it needs before its first line: the C library ends the process
/// where that is refused.
const STACK: usize = 2 << 20;
const FIRST: usize = 4 << 20;

/// Starts `work` on a thread of `scope`.
///
/// # Errors
/// [`Kind::Space`] if the system gives no more threads or no memory for one.
pub fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    let room = memory::room(STACK + FIRST)?;
    let (begun, begins) = channel();
    let work = move || {
        // Whoever waits for this still does.
        let _ = begun.send(());
        work()
    };
    let started = Builder::new().stack_size(STACK).spawn_scoped(scope, work).map_err(|e| {
        Error::new(Kind::Space, format!("the system gives no more threads: {e}"))
            .hint("raise the limit of processes (`ulimit -u`) or of memory, or use fewer: --jobs 1")
    })?;
    // A thread says that it begins before it does anything else.
    let _ = begins.recv();
    drop(room);
    Ok(started)
}
