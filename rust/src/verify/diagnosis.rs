//! What lies in place of a file, as its bytes tell.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::findings::Category;
use crate::header::{self, Header};
use crate::io::Root;
use crate::shard_headers::LFS_MAGIC;

/// First bytes of a file that tell what it is.
const SNIFF: u64 = 512;
/// A longer header is not parsed again to learn what is wrong with it.
const MAX_DIAGNOSED: u64 = 16 << 20;

/// What lies in place of any file, as its first bytes tell: a pointer, a page, or zeros.
pub(super) fn stand_in(start: &[u8]) -> Option<Category> {
    if start.starts_with(LFS_MAGIC) {
        return Some(Category::LfsPointer);
    }
    let text = start.trim_ascii_start();
    let begins = |with: &[u8]| text.get(..with.len()).is_some_and(|t| t.eq_ignore_ascii_case(with));
    if begins(b"<!doctype html") || begins(b"<html") || begins(b"<?xml") {
        return Some(Category::ErrorPage);
    }
    let zeroed = !start.is_empty() && start.iter().all(|b| *b == 0);
    zeroed.then_some(Category::ZeroedHeader)
}

/// The first bytes of a file, and its size; `None` if it cannot be read.
pub(super) fn start_of(file: &File) -> Option<(Vec<u8>, u64)> {
    let size = file.metadata().ok()?.len();
    let mut start = vec![0; SNIFF.min(size) as usize];
    file.read_exact_at(&mut start, 0).ok()?;
    Some((start, size))
}

/// What a file is whose header cannot be read.
pub(super) fn diagnose(root: &Root, name: &str) -> Option<Category> {
    let Ok(file) = root.file(name) else { return Some(Category::Unreadable) };
    let (start, size) = start_of(&file)?;
    let text = start.trim_ascii_start();
    let declared = start.first_chunk().map(|prefix| u64::from_le_bytes(*prefix));
    // A sound length may begin with the byte of any letter.
    let is_text = declared.is_none_or(|length| length > header::MAX_HEADER);
    let begins = |with: &[u8]| is_text && text.starts_with(with);
    if begins(b"<") || begins(b"{\"") || begins(b"{ \"") {
        return Some(Category::ErrorPage);
    }
    if let Some(category) = stand_in(&start) {
        return Some(category);
    }
    let Some(&prefix) = start.first_chunk() else { return Some(Category::Truncated) };
    let declared = u64::from_le_bytes(prefix);
    if (2..=header::MAX_HEADER).contains(&declared) && declared > size - header::PREFIX {
        return Some(Category::Truncated);
    }
    let length = header::json_length(prefix, size).ok().filter(|l| *l <= MAX_DIAGNOSED)?;
    let mut json = vec![0; length as usize];
    file.read_exact_at(&mut json, header::PREFIX).ok()?;
    if json.iter().all(|b| *b == 0) {
        return Some(Category::ZeroedHeader);
    }
    let held = size - header::PREFIX - length;
    (Header::declared_length(&json)? > held).then_some(Category::Truncated)
}
