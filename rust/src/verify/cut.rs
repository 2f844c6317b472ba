//! Folders that `reshard` cut for the ranks of an engine: their files are no checkpoint, and every
//! rank has tensors of the same names. What they should be, only the manifest knows.

use serde::Deserialize;

use crate::catalog::MANIFEST;
use crate::io::Root;
use crate::io::root::check_name;
use crate::target::{Form, Target};

/// Longest manifest that is read.
const MAX_MANIFEST: u64 = 1 << 30;

#[derive(Deserialize)]
struct Manifest {
    request: Request,
    files: Vec<File>,
}

#[derive(Deserialize)]
struct Request {
    reshard: Option<Reshard>,
}

#[derive(Deserialize)]
struct Reshard {
    target: String,
    target_file: Option<String>,
    pp: u32,
}

#[derive(Deserialize)]
struct File {
    path: String,
}

impl Reshard {
    /// Whether a file holds a part of the checkpoint that makes no sense without its rank.
    fn is_cut(&self) -> bool {
        let target = match &self.target_file {
            Some(text) => Target::parse(text).ok(),
            None => Target::builtin(&self.target),
        };
        self.pp > 1 || target.is_none_or(|t| t.layout.form == Form::Ranks)
    }
}

/// The files of a folder that was cut for ranks, as its manifest lists them; `None` for any other
/// folder.
pub(super) fn files(root: &Root) -> Option<Vec<String>> {
    let bytes = root.read(MANIFEST, MAX_MANIFEST).ok()??;
    let manifest: Manifest = serde_json::from_slice(&bytes).ok()?;
    let cut = manifest.request.reshard.is_some_and(|r| r.is_cut());
    let names: Vec<String> = manifest.files.into_iter().map(|f| f.path).collect();
    (cut && names.iter().all(|n| check_name(n).is_ok())).then_some(names)
}
