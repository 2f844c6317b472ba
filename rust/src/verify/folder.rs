//! What lies in a checkpoint's folder beside the checkpoint.

use super::findings::{Category, Finding};
use crate::catalog::INDEX;
use crate::error::Result;
use crate::io::{PART_SUFFIX, Root, small};

/// Subfolders are looked at this deep.
pub(super) const DEPTH: usize = 4;

/// Endings that unfinished downloads have.
const LEFTOVERS: [&str; 4] = [".incomplete", ".aria2", PART_SUFFIX, ".download"];
/// Hidden folders in which download tools keep unfinished files.
const HIDDEN: [&str; 2] = [".cache/huggingface/download", "._____temp"];
/// Endings of formats that execute code when they are loaded.
const UNSAFE: [&str; 6] = ["bin", "pt", "pth", "pkl", "ckpt", "msc"];

/// Whether a name is that of an unfinished download.
pub(super) fn is_leftover(name: &str) -> bool {
    LEFTOVERS.iter().any(|ending| name.ends_with(ending))
}

/// Whether a checkpoint cannot be loaded without this file.
pub(super) fn is_needed(name: &str) -> bool {
    let ending = name.rsplit('.').next().unwrap_or_default();
    let tokenizer = name.contains("tokenizer") || ["vocab.json", "merges.txt"].contains(&name);
    tokenizer || name == INDEX || matches!(ending, "safetensors" | "py")
}

/// Leftovers of broken downloads, and files that must not be opened.
pub(super) fn leftovers(root: &Root, names: &[String]) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut hidden = Vec::new();
    for folder in HIDDEN {
        // A link that leads outside is a finding of whoever reads what is in there.
        let Some(inside) = root.resolve(folder).ok().flatten() else { continue };
        let names = small::list(&inside).or_else(|e| e.about_file().map(|_| Vec::new()))?;
        hidden.extend(names.into_iter().map(|name| format!("{folder}/{name}")));
    }
    let in_temp = |name: &str| name.starts_with("._____temp/");
    for name in names.iter().cloned().chain(hidden) {
        let ending = name.rsplit('.').next().unwrap_or_default();
        if is_leftover(&name) || in_temp(&name) {
            let message = "left by a download that did not finish";
            findings.push(Finding::note(Category::Leftover, name, message));
        } else if UNSAFE.contains(&ending) {
            let message = "a format that executes code when it is loaded; not opened";
            findings.push(Finding::note(Category::UnsafeFormat, name, message));
        }
    }
    Ok(findings)
}
