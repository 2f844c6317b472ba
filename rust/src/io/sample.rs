//! A sample of a file's content.

use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, fadvise};
use xxhash_rust::xxh3::Xxh3Default;

use super::{PAGE, Root};
use crate::error::{Error, Result};

/// XXH3-128, in hexadecimal, of the pages of `name` that begin at `places`.
pub fn take(root: &Root, name: &str, places: &[u64]) -> Result<String> {
    let file = root.file(name)?;
    // Reading ahead would read the file.
    let _ = fadvise(&file, 0, None, Advice::Random);
    let mut hash = Xxh3Default::new();
    let mut page = [0; PAGE as usize];
    for place in places {
        let mut filled = 0;
        while filled < page.len() {
            match file.read_at(&mut page[filled..], place + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("cannot read", root.path().join(name), &e)),
            }
        }
        hash.update(&place.to_le_bytes());
        hash.update(&page[..filled]);
    }
    Ok(format!("{:032x}", hash.digest128()))
}
