//! Journals of an unfinished run, which another run goes on from.
//!
//! The input is an output folder (see [`crate::folder`]). Each line of a file `journal.…` gets the
//! sum that it should have, unless it begins with `!`; `PLAN`, `TASK` and `STAMP` stand for what
//! a run of the plan writes there.
//!
//! Whatever a journal says, a run that ends well has the bytes of an undisturbed one. Scales that a
//! point holds for later are the exception: they are nowhere but in the journal, whose sums guard them
//! against damage and not against a forger.

use std::path::{Path, PathBuf};

use lingconv_core::catalog::Catalog;
use lingconv_core::exec::attest::Known;
use lingconv_core::exec::fold::SavedOutput;
use lingconv_core::exec::journal::{FOLDER, State};
use lingconv_core::exec::{Options, Outcome, Progress, Worker, output};
use lingconv_core::io::{Mode, Root};
use lingconv_core::numeric::Level;
use lingconv_core::plan::{self, Plan, Request};
use lingconv_core::run;
use xxhash_rust::xxh3::xxh3_64;

use crate::{folder, sound};

/// Two shards, so that there is something left to do when the first is done.
const SOURCE: &str = concat!(
    "-- a.safetensors --\n",
    r#"{"a":{"dtype":"BF16","shape":[130,3],"data_offsets":[0,780]},"#,
    r#""b":{"dtype":"F32","shape":[4],"data_offsets":[780,796]}}"#,
    "\n-- c.safetensors --\n",
    r#"{"c":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#
);
const REQUEST: &str = r#"{"verb":"quantize","only":["a"]}"#;

/// Checks one input.
///
/// # Panics
/// If a law does not hold.
pub fn check(data: &[u8]) {
    let place = folder::scratch();
    let Some((catalog, plan)) = planned(place.path()) else { return };
    let out = place.path().join("output");
    let files = folder::files(data);
    let filled: Vec<(&str, Vec<u8>)> =
        files.iter().map(|(name, content)| (*name, fill(name, content, &catalog, &plan))).collect();
    let files: Vec<(&str, &[u8])> = filled.iter().map(|(n, c)| (*n, c.as_slice())).collect();
    folder::write(&out, &files);
    let Some(state) = sound(State::read(&out)) else { return };
    for (task, record) in &state.done {
        assert_eq!(*task, record.task);
    }
    let waiting = state.points.values().flat_map(|point| &point.fold.outputs);
    let forged = waiting.into_iter().any(SavedOutput::has_waiting);
    sound(output::inspect(&out, &plan.digest(), &plan.digest(), None));
    let ended = sound(run::run(&catalog, &plan, &options(out.clone()), &Progress::default()));
    if ended.is_some_and(|run| run.outcome == Outcome::Complete) && !forged {
        let calm = place.path().join("calm");
        sound(run::run(&catalog, &plan, &options(calm.clone()), &Progress::default()));
        for name in ["a.safetensors", "c.safetensors"] {
            assert_eq!(content(&out, name), content(&calm, name), "{name}");
        }
    }
}

fn content(folder: &Path, name: &str) -> Option<Vec<u8>> {
    sound(sound(Root::open(folder))?.read(name, 1 << 20)).flatten()
}

/// What one worker of two leaves when its share is done: its journal, as an input has it, and its
/// file.
pub fn recorded() -> Option<(String, Vec<u8>)> {
    let place = folder::scratch();
    let (catalog, plan) = planned(place.path())?;
    let out = place.path().join("output");
    let options = Options { worker: Worker { index: 1, count: 2 }, ..options(out.clone()) };
    sound(run::run(&catalog, &plan, &options, &Progress::default()))?;
    let journal = content(&out, &format!("{FOLDER}/journal.1-of-2"))?;
    let text = String::from_utf8(journal).ok()?;
    let records: Vec<&str> = text.lines().filter_map(|l| l.split_once(' ')).map(|l| l.1).collect();
    let text = records
        .join("\n")
        .replace(&plan.digest(), "PLAN")
        .replace(&plan.tasks.first()?.digest(), "TASK")
        .replace(&stamp(&catalog), "STAMP");
    Some((text, content(&out, "a.safetensors")?))
}

fn planned(place: &Path) -> Option<(Catalog, Plan)> {
    let source = place.join("source");
    folder::write(&source, &folder::files(SOURCE.as_bytes()));
    let catalog = sound(Catalog::open(&source))?;
    let plan = sound(plan::build(&catalog, &sound(Request::parse(REQUEST))?))?;
    Some((catalog, plan))
}

/// Gives the lines of a journal their sums.
fn fill(name: &str, content: &[u8], catalog: &Catalog, plan: &Plan) -> Vec<u8> {
    let (true, Ok(text)) = (name.contains("journal."), std::str::from_utf8(content)) else {
        return content.to_vec();
    };
    let task = plan.tasks.first().map(plan::Task::digest).unwrap_or_default();
    let text = text
        .replace("PLAN", &plan.digest())
        .replace("TASK", &task)
        .replace("STAMP", &stamp(catalog));
    let line = |line: &str| match line.strip_prefix('!') {
        Some(raw) => format!("{raw}\n"),
        None => format!("{:016x} {line}\n", xxh3_64(line.as_bytes())),
    };
    text.lines().map(line).collect::<String>().into_bytes()
}

/// Size and times of the first shard, which differ from run to run.
fn stamp(catalog: &Catalog) -> String {
    serde_json::to_string(&catalog.file(0).1).unwrap_or_default()
}

fn options(output: PathBuf) -> Options {
    Options {
        output,
        jobs: 1,
        memory: 64 << 20,
        io: Mode::Buffered,
        level: Level::Scalar,
        paranoid: false,
        worker: Worker::ALONE,
        resume: true,
        force: false,
        point_every: 1,
        known: None,
        links: Known::default(),
    }
}
