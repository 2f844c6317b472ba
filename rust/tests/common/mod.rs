//! Small checkpoints and plans for the integration tests.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use lingconv_core::catalog::Catalog;
use lingconv_core::dialect::{Dialect, ScaleKind};
use lingconv_core::dtype::Dtype;
use lingconv_core::error::Result;
use lingconv_core::exec::{Options, Outcome, Progress, Run, Worker};
use lingconv_core::header::{self, Entry};
use lingconv_core::io::Mode;
use lingconv_core::numeric::{Arith, Encoding, Level};
use lingconv_core::plan::{OutputFile, Plan, Request, Step, Target, Task};
use tempfile::TempDir;

/// Bytes that depend on a seed alone: finite BF16 values of a few magnitudes.
pub fn bf16_bytes(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..count)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let exponent = 118 + (state >> 40) % 8;
            let bits = (state as u16 & 0x807F) | ((exponent as u16) << 7);
            bits.to_le_bytes()
        })
        .collect()
}

pub fn entry(name: &str, dtype: Dtype, shape: &[u64]) -> Entry {
    Entry { name: name.into(), dtype, shape: shape.into(), begin: 0, end: 0 }
}

/// Writes one safetensors file; data in the order given.
pub fn write_shard(path: &Path, tensors: &[(&str, Dtype, &[u64], Vec<u8>)]) {
    let mut entries: Vec<Entry> = tensors.iter().map(|(n, d, s, _)| entry(n, *d, s)).collect();
    header::lay_out(&mut entries).unwrap();
    let mut bytes = header::encode(&entries).unwrap();
    for (_, _, _, data) in tensors {
        bytes.extend_from_slice(data);
    }
    std::fs::write(path, bytes).unwrap();
}

/// A source folder and a place for outputs.
pub struct Bench {
    pub folder: TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("source")).unwrap();
        Self { folder }
    }

    pub fn source(&self) -> PathBuf {
        self.folder.path().join("source")
    }

    pub fn output(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn catalog(&self) -> Catalog {
        Catalog::open(&self.source()).unwrap()
    }
}

pub fn options(output: PathBuf) -> Options {
    Options {
        output,
        jobs: 1,
        memory: 1 << 30,
        io: Mode::Auto,
        level: Level::detect(),
        paranoid: false,
        worker: Worker::ALONE,
        resume: true,
        force: false,
        point_every: u64::MAX,
        known: None,
        links: lingconv_core::exec::attest::Known::default(),
    }
}

/// A plan of hand-made tasks.
pub fn plan(catalog: &Catalog, tasks: Vec<Task>) -> Plan {
    Plan {
        request: Request::parse(r#"{"verb":"quantize"}"#).unwrap(),
        catalog_digest: catalog.digest(),
        tasks,
        dropped: Vec::new(),
        sidecars: Vec::new(),
        config_changes: Vec::new(),
        warnings: Vec::new(),
        launch: Vec::new(),
        expected: Vec::new(),
        ranks: Vec::new(),
        elsewhere: Vec::new(),
    }
}

pub fn task(outputs: Vec<(&str, Vec<Entry>)>, steps: Vec<Step>) -> Task {
    let outputs: Vec<OutputFile> =
        outputs.into_iter().map(|(p, t)| OutputFile::new(p.into(), t).unwrap()).collect();
    Task { name: outputs[0].path.clone(), outputs, steps, link: None }
}

pub fn target(
    output: u32,
    tensor: u32,
    rows: [u64; 2],
    cols: [u64; 2],
    scale: Option<u32>,
) -> Target {
    Target { output, tensor, rows: rows[0]..rows[1], cols: cols[0]..cols[1], scale }
}

pub fn deepseek() -> Encoding {
    let dialect = Dialect::builtin("deepseek").unwrap();
    dialect.encoding(None, ScaleKind::F32, Arith::Ieee).unwrap()
}

/// Runs a plan; the bytes read are returned with the outcome.
pub fn run(catalog: &Catalog, plan: &Plan, options: &Options) -> Result<(Outcome, u64)> {
    let progress = Progress::default();
    let key = plan.digest();
    let (outcome, _) = Run::new(catalog, plan, &key, options, &progress).execute()?;
    Ok((outcome, progress.read.load(Ordering::Relaxed)))
}

/// All tensors of a file by name.
pub fn tensors(path: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect()
}

/// Rows and columns of a row-major matrix of `unit`-byte elements.
pub fn cut(data: &[u8], width: usize, rows: [usize; 2], cols: [usize; 2], unit: usize) -> Vec<u8> {
    (rows[0]..rows[1])
        .flat_map(|r| data[(r * width + cols[0]) * unit..(r * width + cols[1]) * unit].to_vec())
        .collect()
}

/// Every file of a folder but the journals, by name.
pub fn folder_bytes(folder: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_file())
        .map(|p| {
            (p.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&p).unwrap())
        })
        .collect()
}

/// Cases of a property test: `sample` of them, or forty times as many with `LINGCONV_FULL=1`.
pub fn cases(sample: u32) -> u32 {
    let full = std::env::var_os("LINGCONV_FULL").is_some_and(|value| value == "1");
    if full { sample * 40 } else { sample }
}
