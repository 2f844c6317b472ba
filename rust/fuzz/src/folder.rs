//! Folders as one text: a line `-- NAME --` begins each file.
//!
//! A file called `.safetensors` whose content begins with `{` is a header: its length goes before
//! it and a hole of the data that it asks for behind it, so that a mutation of a few bytes is a
//! checkpoint and not just a wrong length.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use lingconv_core::header::Header;
use lingconv_core::io::root::check_name;
use tempfile::TempDir;

/// Most files of a folder.
const MAX_FILES: usize = 64;
/// Longest name: file systems take no longer one.
const MAX_NAME: usize = 200;
/// Most bytes of holes behind a header.
const MAX_HOLE: u64 = 1 << 40;

/// The files of a text, in its order.
pub fn files(data: &[u8]) -> Vec<(&str, &[u8])> {
    let mut files: Vec<(&str, &[u8])> = Vec::new();
    let (mut begin, mut at) = (0, 0);
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        let next = at + line.len();
        if let Some(name) = name_of(line) {
            if let Some(last) = files.last_mut() {
                last.1 = &data[begin..at];
            }
            if files.len() == MAX_FILES {
                return files;
            }
            files.push((name, &[]));
            begin = next;
        }
        at = next;
    }
    if let Some(last) = files.last_mut() {
        last.1 = &data[begin..];
    }
    files
}

/// The content of the file called `name` as text; `None` if there is none.
pub fn text<'d>(files: &[(&str, &'d [u8])], name: &str) -> Option<&'d str> {
    let (_, content) = files.iter().find(|(known, _)| *known == name)?;
    std::str::from_utf8(content).ok()
}

fn name_of(line: &[u8]) -> Option<&str> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let name = line.strip_prefix(b"-- ")?.strip_suffix(b" --")?;
    std::str::from_utf8(name).ok().filter(|name| name.len() <= MAX_NAME)
}

/// A folder for one input, removed after it.
///
/// # Panics
/// If the machine has no place for it.
pub fn scratch() -> TempDir {
    match tempfile::tempdir() {
        Ok(folder) => folder,
        Err(error) => panic!("no place for files: {error}"),
    }
}

/// Writes `files` below `folder`, but for those whose names lead elsewhere or cannot be.
pub fn write(folder: &Path, files: &[(&str, &[u8])]) {
    for (name, content) in files {
        if check_name(name).is_ok() {
            // A name may be that of a folder already; the others are written all the same.
            let _ = write_file(&folder.join(name), content);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "it makes what the core is to read")]
fn write_file(path: &Path, content: &[u8]) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let header = path.extension().is_some_and(|e| e == "safetensors") && content.starts_with(b"{");
    if !header {
        return std::fs::write(path, content);
    }
    let prefix = (content.len() as u64).to_le_bytes();
    let hole = Header::declared_length(content).filter(|length| *length <= MAX_HOLE);
    write_with_hole(path, &[&prefix[..], content].concat(), hole.unwrap_or(0))
}

/// Writes `bytes` and a hole of `hole` bytes behind them.
#[expect(clippy::disallowed_methods, reason = "it makes what the core is to read")]
pub fn write_with_hole(path: &Path, bytes: &[u8], hole: u64) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.set_len(bytes.len() as u64 + hole)
}
