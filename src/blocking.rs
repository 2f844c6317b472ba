//! Long core work beside a responsive interpreter.
//!
//! The work runs on a thread of its own, detached from the GIL. The calling thread waits in steps
//! of [`STEP`], lets Python handle signals, and reports progress. Whatever a handler or the
//! reporter raises sets the stop flag; the thread is joined, and only then is it raised. Joining
//! from Python instead would end in a fatal interpreter error on Ctrl-C.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use lingconv_core::error::{Error, Result};
use lingconv_core::threads;
use pyo3::prelude::*;

use crate::errors::to_py;

/// Longest time without a look at signals.
const STEP: Duration = Duration::from_millis(50);

/// Runs `work`, which ends soon after `stop` is set. `tick` is called every [`STEP`] with whether
/// the work is being stopped.
pub fn run<T: Send>(
    py: Python<'_>,
    stop: &AtomicBool,
    work: impl FnOnce() -> Result<T> + Send,
    mut tick: impl FnMut(bool) -> PyResult<()>,
) -> PyResult<T> {
    let (done, finished) = channel();
    let finished = std::sync::Mutex::new(finished);
    std::thread::scope(|scope| {
        let thread = threads::spawn(scope, move || {
            let result = work();
            // The receiver outlives this thread.
            let _ = done.send(());
            result
        })
        .map_err(|e| to_py(py, &e))?;
        let mut raised = None;
        loop {
            let waited = py.detach(|| {
                let finished = finished.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                finished.recv_timeout(STEP)
            });
            if waited != Err(RecvTimeoutError::Timeout) {
                break;
            }
            if let Err(error) = py.check_signals().and_then(|()| tick(raised.is_some())) {
                stop.store(true, Ordering::Relaxed);
                raised.get_or_insert(error);
            }
        }
        let result = py.detach(|| thread.join());
        match (raised, result) {
            (Some(error), _) => Err(error),
            (None, Ok(result)) => {
                tick(false)?;
                result.map_err(|e| to_py(py, &e))
            }
            (None, Err(_)) => Err(to_py(
                py,
                &Error::internal("internal error").hint("please report it with the command"),
            )),
        }
    })
}

/// Runs work that takes no longer than a second or so and cannot be stopped midway.
pub fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    run(py, &AtomicBool::new(false), work, |_| Ok(()))
}
