//! What happens where the system gives no more memory.
//!
//! Large buffers are asked for, and an error says that there is none. Everything else is small and
//! everywhere, and its want cannot be handled where it is met: Rust aborts. An [`Allocator`] lets
//! the process end with [`last_words`] and the exit code of its caller instead.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::error::{Error, Kind, MORE_MEMORY, Result};

thread_local! {
    /// Whether this thread can do without the memory it asks for.
    static ASKING: Cell<bool> = const { Cell::new(false) };
}

/// Held while memory is asked for that may be the last.
static TURN: Mutex<()> = Mutex::new(());

static LAST_WORDS: OnceLock<LastWords> = OnceLock::new();

struct LastWords {
    text: Box<[u8]>,
    code: i32,
}

/// From now on a process whose allocator is [`Allocator`] ends with `code`, and with `text` on
/// stderr, when it has no memory left. The first call counts.
pub fn last_words(text: &str, code: i32) {
    let _ = LAST_WORDS.set(LastWords { text: text.as_bytes().into(), code });
}

/// `length` bytes of zeros.
///
/// # Errors
/// [`Kind::Space`] if the system does not give them.
#[allow(unsafe_code)]
pub fn zeroed(length: usize) -> Result<Box<[u8]>> {
    let layout = Layout::array::<u8>(length).map_err(|_| refused(length))?;
    if layout.size() == 0 {
        return Ok(Box::default());
    }
    let _turn = turn();
    ASKING.set(true);
    // SAFETY: the layout is not empty.
    let start = unsafe { std::alloc::alloc_zeroed(layout) };
    ASKING.set(false);
    if start.is_null() {
        return Err(refused(length));
    }
    // SAFETY: these bytes were given just now by the global allocator, for this length, and are zero.
    Ok(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(start, length)) })
}

/// Makes sure that `length` bytes can be had, of which no buffer takes any while the answer lives.
///
/// # Errors
/// [`Kind::Space`] if the system does not give them.
#[allow(unsafe_code)]
pub fn room(length: usize) -> Result<MutexGuard<'static, ()>> {
    let turn = turn();
    let (access, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new place is asked for, nothing is in it, and it is given back as it came.
    let given = unsafe {
        let start = libc::mmap(std::ptr::null_mut(), length, access, kind, -1, 0);
        start != libc::MAP_FAILED && libc::munmap(start, length) == 0
    };
    if given { Ok(turn) } else { Err(refused(length)) }
}

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(length: usize) -> Error {
    Error::new(Kind::Space, format!("not enough memory: {length} bytes are refused"))
        .hint(MORE_MEMORY)
}

/// The system's allocator, but for its end.
#[derive(Debug)]
pub struct Allocator;

// SAFETY: all memory is the system's, and its rules are those of the system's allocator.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps to the rules.
        given(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps to the rules.
        given(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller keeps to the rules.
        given(unsafe { System.realloc(old, layout, size) })
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to the rules.
        unsafe { System.dealloc(old, layout) }
    }
}

fn given(start: *mut u8) -> *mut u8 {
    if start.is_null() && !ASKING.get() {
        end();
    }
    start
}

/// Ends the process, unless nobody has said how. Nothing is allocated, and nothing of a run is lost
/// that a kill would not lose.
#[cold]
#[allow(unsafe_code)]
fn end() {
    if let Some(LastWords { text, code }) = LAST_WORDS.get() {
        // SAFETY: the text lives as long as the process, and neither call needs anything else.
        unsafe {
            libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
            libc::_exit(*code);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_there_is_not_is_an_error() {
        drop(room(1 << 20).unwrap());
        assert!(zeroed(0).unwrap().is_empty());
        assert_eq!(*zeroed(3).unwrap(), [0; 3]);
        for length in [usize::MAX, isize::MAX as usize, 1 << 62] {
            let error = zeroed(length).unwrap_err();
            assert_eq!(error.kind, Kind::Space);
            assert!(error.message.contains(&length.to_string()));
            assert_eq!(room(length).unwrap_err().message, error.message);
        }
    }
}
