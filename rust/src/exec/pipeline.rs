//! One task as a ring of slots.
//!
//! ```text
//!   free slots ──► encoders (read, transform) ──► hasher (in order) ──► writer ──► free slots
//!                                                             └► attest ─┘  with --verify-source
//! ```
//!
//! Windows are taken in order together with a free slot, finished in any order, hashed in order
//! and written in order. SHA-256 is the slowest stage, so nothing else happens in its thread.
//! The journal's points pass through the same channels, so that a point is recorded only after
//! every byte before it is durable.
//!
//! Whatever ends a stage early, a panic included, is a failure at its place in the order of the
//! plan. The first of them is the task's, and any one of them ends all stages: each sees the flag or
//! finds that a channel's other end is gone.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};

use super::attest::{Attest, Verified};
use super::budget::{Budget, ENCODERS, SLOTS};
use super::fold::{DoneOutput, Fold, SavedFold, TensorReport};
use super::progress::Progress;
use super::sink::Sink;
use super::slot::{Piece, Slot, Work};
use super::window::{Window, Windows};
use crate::error::{Error, Result};
use crate::threads;

/// Longest time that an encoder waits for a slot without a look at the flags.
const SLOT_PATIENCE: std::time::Duration = std::time::Duration::from_millis(20);

/// What the writer is told.
enum Order {
    /// Write a slot's pieces and give it back.
    Slot(Box<Slot>),
    /// Make everything durable and record the state.
    Point(Box<SavedFold>),
}

/// A finished window.
struct Filled {
    window: Window,
    slot: Box<Slot>,
}

/// The first thing that went wrong, by the order of the plan.
#[derive(Default)]
struct Failure(Mutex<Option<(u64, Error)>>);

impl Failure {
    fn set(&self, sequence: u64, error: Error) {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if first.as_ref().is_none_or(|(s, _)| sequence < *s) {
            *first = Some((sequence, error));
        }
    }

    fn is_set(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// A stage that could not even begin.
    fn set_any(&self, error: Option<Error>) {
        if let Some(error) = error {
            self.set(0, error);
        }
    }

    /// Runs a stage; a panic in it is a failure behind all others, and gives nothing.
    fn guard<T>(&self, stage: impl FnOnce() -> T) -> Option<T> {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(stage));
        if ended.is_err() {
            self.set(u64::MAX, Error::internal("a worker thread panicked"));
        }
        ended.ok()
    }

    fn take(&self) -> Result<()> {
        let first = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        first.map_or(Ok(()), |(_, error)| Err(error))
    }
}

/// A task that has been run to its end.
pub(super) struct Finished<S> {
    pub outputs: Vec<DoneOutput>,
    pub reports: Vec<TensorReport>,
    /// They have taken everything.
    pub sinks: Vec<S>,
    /// Source files whose digests are those known.
    pub verified: Vec<Verified>,
}

/// A task ready to run.
pub(super) struct Pipeline<'a> {
    pub work: Work<'a>,
    pub budget: Budget,
    /// Bytes of output between two points.
    pub point_every: u64,
    pub progress: &'a Progress,
    /// Counts the bytes that the sinks have taken.
    pub written: &'a AtomicU64,
    /// Records a point; called after everything before it is durable.
    pub record: &'a (dyn Fn(SavedFold) -> Result<()> + Sync),
}

impl Pipeline<'_> {
    /// Runs the task to its end: `headers` are the first pieces of outputs that start now, `sinks`
    /// take the outputs. With `attest`, the bytes read pass through it on their way there.
    pub(super) fn run<S: Sink>(
        &self,
        fold: Fold,
        headers: Vec<Piece>,
        mut sinks: Vec<S>,
        attest: Option<Attest>,
    ) -> Result<Finished<S>> {
        let start = fold.position();
        let windows = Windows::new(self.work, self.budget, start)?;
        self.write_pieces(&mut sinks, &Slot::holding(headers))?;
        let failure = Failure::default();
        let (free_in, free_out) = channel::<Box<Slot>>();
        let (filled_in, filled_out) = sync_channel::<Filled>(SLOTS);
        let (orders_in, orders_out) = sync_channel::<Order>(SLOTS);
        for _ in 0..SLOTS {
            let _ = free_in.send(Box::default());
        }
        let dispatch = Mutex::new((windows, free_out));
        let (dispatch, failure) = (&dispatch, &failure);
        let ended = std::thread::scope(|scope| {
            let mut encoders = Vec::new();
            for _ in 0..ENCODERS {
                let filled_in = filled_in.clone();
                let work = move || self.encode(dispatch, &filled_in, failure);
                encoders.push(threads::spawn(scope, move || failure.guard(work)));
            }
            drop(filled_in);
            let work = move || self.hash(fold, filled_out, orders_in, failure);
            let hasher = threads::spawn(scope, move || failure.guard(work));
            let (orders_out, attesting) = match attest {
                None => (orders_out, None),
                Some(attest) => {
                    let (on_in, on_out) = sync_channel::<Order>(SLOTS);
                    let work = move || self.attest(attest, orders_out, on_in, failure);
                    (on_out, Some(threads::spawn(scope, move || failure.guard(work))))
                }
            };
            // The writer is this thread: where no other can be made, its end is what ends the rest.
            for stage in encoders.iter().map(|e| e.as_ref().err().cloned()) {
                failure.set_any(stage);
            }
            failure.set_any(hasher.as_ref().err().cloned());
            failure.set_any(attesting.as_ref().and_then(|a| a.as_ref().err().cloned()));
            let work = || self.write(sinks, orders_out, free_in, failure);
            let written = failure.guard(work);
            let fold = hasher.ok().and_then(|h| h.join().ok().flatten());
            let verified = attesting.map_or(Some(Vec::new()), |a| a.ok()?.join().ok().flatten());
            Some((fold?, written?, verified?))
        });
        failure.take()?;
        if self.progress.stopped() {
            return Err(Error::cancelled());
        }
        let ended = ended.ok_or_else(|| Error::internal("a stage ended without a reason"))?;
        let (fold, sinks, verified) = ended;
        let (outputs, reports) = fold.finish()?;
        Ok(Finished { outputs, reports, sinks, verified })
    }

    fn encode(
        &self,
        dispatch: &Mutex<(Windows, Receiver<Box<Slot>>)>,
        filled: &SyncSender<Filled>,
        failure: &Failure,
    ) {
        while !self.progress.stopped() && !failure.is_set() {
            let taken = {
                let mut dispatch = dispatch.lock().unwrap_or_else(PoisonError::into_inner);
                // The slot first: a window once taken must be finished, or those behind it wait.
                // Where one failed they wait for ever, with all slots: hence the look at the flags.
                let slot = match dispatch.1.recv_timeout(SLOT_PATIENCE) {
                    Ok(slot) => slot,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                match dispatch.0.next() {
                    Ok(Some(window)) => Filled { window, slot },
                    Ok(None) => return,
                    Err(error) => return failure.set(dispatch.0.sequence(), error),
                }
            };
            let Filled { window, mut slot } = taken;
            if let Err(error) = slot.process(&self.work, &window) {
                return failure.set(window.sequence, error);
            }
            if filled.send(Filled { window, slot }).is_err() {
                return;
            }
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "the writer ends when this end is dropped")]
    fn hash<'f>(
        &self,
        mut fold: Fold<'f>,
        filled: Receiver<Filled>,
        orders: SyncSender<Order>,
        failure: &Failure,
    ) -> Fold<'f> {
        let mut early: BTreeMap<u64, Filled> = BTreeMap::new();
        let mut due = 0;
        let mut since_point = 0u64;
        for arrived in filled {
            early.insert(arrived.window.sequence, arrived);
            while let Some(Filled { window, mut slot }) = early.remove(&due) {
                due += 1;
                if let Err(error) = fold.take(&window, &mut slot) {
                    failure.set(window.sequence, error);
                    return fold;
                }
                since_point +=
                    slot.pieces.iter().map(|p| slot.bytes(&p.place).len() as u64).sum::<u64>();
                if orders.send(Order::Slot(slot)).is_err() {
                    return fold;
                }
                if since_point >= self.point_every {
                    since_point = 0;
                    let _ = orders.send(Order::Point(Box::new(fold.save())));
                }
            }
        }
        // Stopped midway: what is hashed is kept, so that nothing of it is done twice.
        let stopped = self.progress.stopped() || failure.is_set();
        if stopped && since_point > 0 {
            let _ = orders.send(Order::Point(Box::new(fold.save())));
        }
        fold
    }

    #[expect(clippy::needless_pass_by_value, reason = "the writer ends when this end is dropped")]
    fn attest(
        &self,
        mut attest: Attest,
        orders: Receiver<Order>,
        on: SyncSender<Order>,
        failure: &Failure,
    ) -> Vec<Verified> {
        for mut order in orders {
            let fed = match &mut order {
                Order::Slot(slot) => slot.source().map_or(Ok(()), |(n, o, b)| attest.feed(n, o, b)),
                Order::Point(saved) => {
                    saved.sources = attest.save();
                    Ok(())
                }
            };
            if let Err(error) = fed {
                failure.set(0, error);
                return Vec::new();
            }
            if on.send(order).is_err() {
                return Vec::new();
            }
        }
        if self.progress.stopped() || failure.is_set() {
            return Vec::new();
        }
        attest.finish().unwrap_or_else(|error| {
            failure.set(0, error);
            Vec::new()
        })
    }

    #[expect(clippy::needless_pass_by_value, reason = "the encoders end when this end is dropped")]
    fn write<S: Sink>(
        &self,
        mut sinks: Vec<S>,
        orders: Receiver<Order>,
        free: Sender<Box<Slot>>,
        failure: &Failure,
    ) -> Vec<S> {
        for order in orders {
            let done = match order {
                Order::Slot(slot) => self.write_pieces(&mut sinks, &slot).map(|()| {
                    // Nobody waits for slots any more once the encoders have ended.
                    let _ = free.send(slot);
                }),
                Order::Point(saved) => {
                    let synced = sinks.iter_mut().try_for_each(Sink::sync_point);
                    synced.and_then(|()| (self.record)(*saved))
                }
            };
            if let Err(error) = done {
                failure.set(0, error);
                break;
            }
        }
        sinks
    }

    fn write_pieces<S: Sink>(&self, sinks: &mut [S], slot: &Slot) -> Result<()> {
        for piece in &slot.pieces {
            let bytes = slot.bytes(&piece.place);
            sinks[piece.output as usize].take(bytes)?;
            self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::catalog::Catalog;
    use crate::exec::sources::Sources;
    use crate::exec::window::Position;
    use crate::io::{Mode, small};
    use crate::numeric::Level;
    use crate::plan::Task;

    /// Longer than any machine takes to see a flag; a thread that hangs would never end.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn encoders_end_when_a_window_failed_and_all_slots_wait_for_it() {
        let folder = tempfile::tempdir().unwrap();
        small::write_durable(&folder.path().join("model.safetensors"), b"\x02\0\0\0\0\0\0\0{}")
            .unwrap();
        let catalog = Catalog::open(folder.path()).unwrap();
        let task = Task { name: "none".into(), outputs: Vec::new(), steps: Vec::new(), link: None };
        let progress = Progress::default();
        let sources = Sources::open(&catalog, &task, Mode::Buffered, &progress).unwrap();
        let (free_in, free_out) = channel::<Box<Slot>>();
        let (filled_in, _filled_out) = sync_channel::<Filled>(SLOTS);
        let (ended_in, ended_out) = channel();
        let work = Work {
            catalog: &catalog,
            task: &task,
            sources: &sources,
            level: Level::detect(),
            prove: false,
            report: false,
        };
        let budget = Budget { window: 1 << 20, ..Budget::default() };
        let windows = Windows::new(work, budget, Position::default()).unwrap();
        let dispatch = Mutex::new((windows, free_out));
        let failure = Failure::default();
        let pipeline = Pipeline {
            work,
            budget,
            point_every: u64::MAX,
            progress: &progress,
            written: &progress.written,
            record: &|_| Ok(()),
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                pipeline.encode(&dispatch, &filled_in, &failure);
                ended_in.send(()).unwrap();
            });
            // No slot comes, since the hasher keeps them all for the window that failed.
            assert!(ended_out.recv_timeout(3 * SLOT_PATIENCE).is_err());
            failure.set(0, Error::internal("the first window"));
            let ended = ended_out.recv_timeout(PATIENCE);
            // Lets a hanging encoder go, so that the test ends.
            drop(free_in);
            ended.unwrap();
        });
    }
}
