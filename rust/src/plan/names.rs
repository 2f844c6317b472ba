//! Which paths an output may have: none that lingconv needs for itself, none that another file system
//! would take for one of its neighbours.
//!
//! Names come from indexes, target files and manifests, so that a bad one is the world's fault: the
//! checkpoint's if it names the file, the request's otherwise.

use std::collections::HashMap;

use unicode_normalization::UnicodeNormalization;

use super::data::Plan;
use super::sidecars::is_small_file;
use crate::catalog::{Catalog, MANIFEST};
use crate::error::{Error, Kind, Result};
use crate::exec::publish::SUMS;
use crate::io::PART_SUFFIX;
use crate::io::root::check_name;

/// Longest name of a file or folder, in bytes, on every file system that counts.
const MAX_COMPONENT: usize = 255;
/// Longest path, as on Linux, with room for the folder that the output lies in.
const MAX_PATH: usize = 3_072;

/// Refuses paths of a plan that cannot stand beside one another, or beside lingconv's own files.
pub(super) fn check(catalog: &Catalog, plan: &Plan) -> Result<()> {
    let data = plan.tasks.iter().flat_map(|t| &t.outputs).map(|o| &o.path);
    let data = data.chain(plan.expected.iter().map(|e| &e.path));
    let small = plan.sidecars.iter().map(|s| &s.path);
    let mut seen: HashMap<String, &str> = [MANIFEST, SUMS].map(|own| (fold(own), own)).into();
    let all = data.map(|path| (path, true)).chain(small.map(|path| (path, false)));
    for (path, is_data) in all.clone() {
        let problem = match reserved(path, is_data) {
            None => seen.insert(fold(path), path).map(|other| match other {
                MANIFEST | SUMS => "the name of a file that lingconv writes itself".to_owned(),
                other if other == path => "two files of the output have this name".to_owned(),
                other => format!("some file systems take it for {other:?}"),
            }),
            some => some,
        };
        problem.map_or(Ok(()), |problem| Err(refuse(catalog, path, &problem)))?;
    }
    for (path, _) in all {
        let folded = fold(path);
        let mut folders = folded.match_indices('/').map(|(end, _)| &folded[..end]);
        if let Some(file) = folders.find_map(|folder| seen.get(folder)) {
            return Err(refuse(catalog, path, &format!("{file:?} is a file, not a folder")));
        }
    }
    Ok(())
}

/// What is wrong with a path by itself.
fn reserved(path: &str, is_data: bool) -> Option<String> {
    if let Err(error) = check_name(path) {
        return Some(error.message);
    }
    let last = path.rsplit('/').next().unwrap_or(path);
    let longest = path.split('/').map(str::len).max().unwrap_or(0);
    if longest.max(last.len() + PART_SUFFIX.len()) > MAX_COMPONENT || path.len() > MAX_PATH {
        return Some(format!("too long: a name takes {MAX_COMPONENT} bytes with {PART_SUFFIX}"));
    }
    if path.split('/').any(|part| part.starts_with('.')) {
        return Some("hidden names are kept for lingconv's own records".to_owned());
    }
    if path.split('/').any(|part| fold(part).ends_with(PART_SUFFIX)) {
        return Some(format!("names in {PART_SUFFIX} are those of unfinished files"));
    }
    // A stage's folder is read as a checkpoint of its own, and so are the sums in it.
    let folded = fold(path);
    let own = folded.rsplit('/').next().is_some_and(|last| last == fold(SUMS));
    (is_data && (own || is_small_file(&folded)))
        .then(|| "the name of a small file, not of a shard".into())
}

/// Equal for names that some file system takes for one: it has no case or a single Unicode form, it
/// passes over signs that nobody sees, or it leaves out dots and spaces at the end.
fn fold(path: &str) -> String {
    let seen = path.chars().filter(|c| !is_ignored(*c));
    let folded: String = seen.nfkc().flat_map(char::to_lowercase).nfkc().collect();
    let parts = folded.split('/').map(|part| part.trim_end_matches(['.', ' ']));
    parts.collect::<Vec<_>>().join("/")
}

/// Whether HFS+ passes over a character.
fn is_ignored(c: char) -> bool {
    matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}')
}

fn refuse(catalog: &Catalog, path: &str, problem: &str) -> Error {
    let kind = whose(catalog, path);
    let error = Error::new(kind, format!("the output cannot hold {path:?}: {problem}"))
        .at(catalog.root.path());
    match kind {
        Kind::Invalid => error.hint("rename the file in the checkpoint and in its index"),
        _ => error.hint("change the file names in the target file"),
    }
}

/// Whose fault a path is: [`Kind::Invalid`] if the checkpoint names it.
fn whose(catalog: &Catalog, path: &str) -> Kind {
    let from_source = |name: &str| path == name || path.ends_with(&format!("/{name}"));
    let shards = catalog.shards.iter().any(|s| from_source(&s.name));
    let carried = || catalog.root.resolve(path).is_ok_and(|found| found.is_some());
    if shards || carried() { Kind::Invalid } else { Kind::Impossible }
}
