//! Experts measured while their files stream by: the figures of a pass of its own, however the
//! bytes arrive.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;

use lingconv_core::catalog::Catalog;
use lingconv_core::error::Kind;
use lingconv_core::exec::Progress;
use lingconv_core::experts::{Options, Survey, examine};
use lingconv_core::io::Mode;
use lingconv_core::model::Model;
use lingconv_core::numeric::Level;
use lingconv_core::plan::request::load_model;
use lingconv_core::synth;
use tempfile::{TempDir, tempdir};

fn tiny(mtp: bool, fp8: bool) -> TempDir {
    let folder = tempdir().unwrap();
    let options = synth::Options { mtp, fp8, ..synth::Options::new("tiny") };
    synth::write(&options, folder.path(), &|_, _| true).unwrap();
    folder
}

fn open(folder: &Path) -> (Catalog, Option<Model>) {
    let catalog = Catalog::open(folder).unwrap();
    let model = load_model(&catalog, None).unwrap();
    (catalog, model)
}

fn survey(folder: &Path) -> Survey {
    let (catalog, model) = open(folder);
    Survey::new(catalog, model, Mode::Buffered, Level::detect()).unwrap()
}

/// Hands all files with experts over, of the last one only a share of `1 / part`; its name.
fn feed(folder: &Path, survey: &Survey, chunk: usize, part: usize) -> String {
    let progress = Progress::default();
    let shards = Catalog::open(folder).unwrap().shards.into_iter().map(|shard| shard.name);
    let mut files: Vec<String> = shards.filter(|name| survey.wants(name)).collect();
    let last = files.pop().unwrap();
    for (name, part) in files.iter().map(|name| (name, 1)).chain([(&last, part)]) {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        let mut follower = survey.follow(name, &progress);
        bytes[..bytes.len() / part].chunks(chunk).for_each(|chunk| follower.update(chunk));
    }
    last
}

#[test]
fn figures_do_not_depend_on_how_bytes_arrive() {
    for folder in [tiny(true, false), tiny(false, true)] {
        let (catalog, model) = open(folder.path());
        let (io, level) = (Mode::Buffered, Level::detect());
        let options = Options { against: None, bias_only: false, jobs: 1, io, level };
        let alone = examine(&catalog, model.as_ref(), &options, &Progress::default()).unwrap();
        let alone = serde_json::to_string(&alone).unwrap();
        for chunk in [97, 4_096, 1 << 20, usize::MAX] {
            let survey = survey(folder.path());
            feed(folder.path(), &survey, chunk, 1);
            let report = survey.report().unwrap();
            assert_eq!(serde_json::to_string(&report).unwrap(), alone);
        }
    }
}

#[test]
fn a_file_that_did_not_come_whole_is_named() {
    let folder = tiny(false, false);
    let survey = survey(folder.path());
    let last = feed(folder.path(), &survey, 1 << 20, 8);
    let error = survey.report().unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
    assert!(error.tensor.is_some());
    assert!(error.path.unwrap().ends_with(&last));
}
