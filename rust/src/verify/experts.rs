//! What the weights of experts tell, as findings of a verification.

use std::path::Path;

use super::engine::Options;
use super::findings::{Category, Finding};
use super::{Level, name_in};
use crate::catalog::CONFIG;
use crate::error::{Error, Result};
use crate::experts::{FindingKind, Report, Survey};

/// Refuses what leaves experts out: they are judged by the others of their layer.
pub(super) fn check(options: &Options) -> Result<()> {
    let narrowed = options.subset.is_some() || !options.files.is_empty() || options.rank.is_some();
    if options.experts.is_some() && options.level < Level::Checksums {
        return Err(Error::usage("experts cannot be looked at where no data is read")
            .hint("a level that reads: --level checksums or content"));
    }
    if options.experts.is_some() && narrowed {
        return Err(Error::usage("experts are looked at in all files or in none")
            .hint("leave out --experts, or --subset, --files and --rank"));
    }
    Ok(())
}

/// Adds what was found of the experts in `folder` to `findings`; the report, if there is one.
pub(super) fn judge(
    survey: &Result<Survey>,
    folder: &Path,
    findings: &mut Vec<Finding>,
) -> Option<Report> {
    let told = match survey {
        Ok(survey) => survey.report().map(|report| (survey, report)).map_err(|e| note(&e, folder)),
        Err(error) => Err(note(error, folder)),
    };
    let (survey, report) = match told {
        Ok(told) => told,
        Err(note) => {
            findings.push(note);
            return None;
        }
    };
    // The scan of values says the same of what is no number, and of zeros.
    let same = |tensor: &str, f: &Finding| {
        let said = [Category::NonFinite, Category::ZeroTensor, Category::Scale];
        said.contains(&f.category) && f.tensor.as_deref() == Some(tensor)
    };
    for found in &report.findings {
        let scanned = matches!(found.kind, FindingKind::Nonfinite | FindingKind::Zero);
        if scanned && findings.iter().any(|f| same(&found.tensor, f)) {
            continue;
        }
        let file = survey.file_of(&found.tensor);
        let message = format!("layer {} expert {}: {}", found.layer, found.expert, found.message);
        findings.push(Finding::failure(Category::Expert, file, message).tensor(&*found.tensor));
    }
    Some(report)
}

/// Why nothing can be told.
fn note(error: &Error, folder: &Path) -> Finding {
    let file = error.path.as_deref().map(|path| name_in(folder, path));
    let file = file.filter(|name| !name.is_empty()).unwrap_or_else(|| CONFIG.into());
    let message = format!("no statistics of experts: {}", error.message);
    let note = Finding::note(Category::Expert, file, message);
    Finding { tensor: error.tensor.clone(), ..note }
}
