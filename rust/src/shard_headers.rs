//! Reads the headers of shards, many at a time, within one allowance.

use crate::allowance::Allowance;
use crate::error::{Error, Kind, Result};
use crate::header::{self, Header};
use crate::io::{Root, Stamp};
use crate::threads;

/// How a git-lfs pointer begins.
pub(crate) const LFS_MAGIC: &[u8] = b"version https://git-lfs";
/// Threads that read headers: on a network file system the waiting adds up.
const HEADER_THREADS: usize = 8;

/// A shard's header as it was read.
#[derive(Debug)]
pub struct ReadHeader {
    /// The checked header.
    pub header: Header,
    /// Prefix and header as they are in the file.
    pub raw: Vec<u8>,
    /// Size and times of the file.
    pub stamp: Stamp,
}

/// Reads and checks the headers of several shards, in their order.
pub(crate) fn read_headers(root: &Root, names: &[String]) -> Result<Vec<ReadHeader>> {
    let count = HEADER_THREADS.min(names.len()).max(1);
    let share = names.len().div_ceil(count).max(1);
    let allowance = Allowance::of_a_model();
    let read_share = |names: &[String]| -> Vec<Result<ReadHeader>> {
        names
            .iter()
            .map(|n| read_header(root, n, &allowance).map_err(|e| e.at(root.path().join(n))))
            .collect()
    };
    std::thread::scope(|scope| {
        let read_share = &read_share;
        let handles = names
            .chunks(share)
            .map(|names| threads::spawn(scope, move || read_share(names)))
            .collect::<Result<Vec<_>>>()?;
        let mut headers = Vec::with_capacity(names.len());
        let mut too_large = None;
        for handle in handles {
            let share = handle.join().map_err(|_| Error::internal("a header thread panicked"))?;
            for read in share {
                match read {
                    Ok(read) => headers.push(read),
                    // Another may be damaged, which nobody should learn later.
                    Err(e) if e.kind == Kind::Impossible => {
                        too_large.get_or_insert(e);
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        too_large.map_or(Ok(headers), Err)
    })
}

/// Reads and checks the header of one shard, which is kept beside others of the same `allowance`.
pub fn read_header(root: &Root, name: &str, allowance: &Allowance) -> Result<ReadHeader> {
    use std::os::unix::fs::FileExt;
    let file = root.file(name)?;
    let fail = |e: std::io::Error| Error::io("cannot read", root.path().join(name), &e);
    let stamp = Stamp::of(&file).map_err(fail)?;
    if stamp.size < header::PREFIX {
        return Err(Error::invalid(format!("{} bytes are no safetensors file", stamp.size))
            .hint("the download is incomplete; download the file again"));
    }
    let mut prefix = [0u8; header::PREFIX as usize];
    file.read_exact_at(&mut prefix, 0).map_err(fail)?;
    // As a number, eight characters of a text are far above the limit; a sound length may well begin
    // with a byte that is a letter.
    if u64::from_le_bytes(prefix) > header::MAX_HEADER {
        let mut start = [0u8; LFS_MAGIC.len()];
        let start = &mut start[..LFS_MAGIC.len().min(stamp.size as usize)];
        file.read_exact_at(start, 0).map_err(fail)?;
        let page = matches!(start, [b'<', second, ..] if second.is_ascii_alphabetic() || b"!?".contains(second));
        if page || start == LFS_MAGIC {
            let what = if page { "a web page" } else { "a git-lfs pointer" };
            return Err(Error::invalid(format!("{what} in place of a shard"))
                .hint("download the file itself, for example with `hf download`"));
        }
    }
    let length = header::json_length(prefix, stamp.size)?;
    allowance.take(header::PREFIX + length)?;
    let mut raw = prefix.to_vec();
    raw.resize((header::PREFIX + length) as usize, 0);
    let (_, json) = raw.split_at_mut(prefix.len());
    file.read_exact_at(json, header::PREFIX).map_err(fail)?;
    let mut header = Header::parse_within(json, stamp.size - header::PREFIX - length, allowance)?;
    // Nobody asks for it, and it may be as long as the header itself.
    header.metadata = Vec::new();
    Ok(ReadHeader { header, raw, stamp })
}
