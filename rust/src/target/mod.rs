//! What an engine wants on disk, as data: file names, names and fusions by role, constants, the
//! command that starts it. The arithmetic of the cuts is in [`crate::model::parallel`].
//!
//! ```toml
//! name = "engine-1.2"
//! engine = "engine"
//! description = "…"
//! versions = ["1.2.0", "1.3.0"]        # tested from the first, up to and without the second
//!
//! [layout]
//! form = "ranks"                       # a set of files a rank; "stages": the original's shards,
//!                                      # named {shard}, for each pipeline stage
//! file = "rank-{tp}-part-{part}.safetensors"
//! stage_file = "stage-{pp}-rank-{tp}-part-{part}.safetensors"  # with pipeline stages; a folder
//!                                      # in front of the name gets config.json and the rest too
//! remainder = "before-last"            # stages that take one more layer
//! vocab_multiple = 64                  # rows of the vocabulary are padded with zeros to this
//! expert_multiple = 128                # what a rank's share of an expert must divide by
//! every_stage = ["head"]               # roles that each stage has, whatever the architecture
//! expert_file = "ep{ep}-{shard}"       # stages: with expert parallelism the experts of a rank have
//!                                      # files of their own, named so in the place of {shard}
//!
//! [launch]
//! command = "serve {model} --tp {tp} --pp {pp}{ep}"   # {model}: the output, or the path under
//!                                      # which each node has the folder of its stage
//! stages = { before = "rsync -aL {out}/pp{stage}/ NODE{stage}:{model}/" }  # where stages have
//!                                      # folders: a line for each before the command; `instead`:
//!                                      # a command for each in its place
//! expert_parallel = " --ep"            # what {ep} is with expert parallelism
//! partition = "LAYERS={layers} "       # goes before it if the stages are not the engine's own
//!
//! [[architecture]]
//! name = "ExampleForCausalLM"          # as in data/architectures
//! every_stage = ["norm.final"]         # roles that each stage has
//! computed = ["model.layers.{layer}.rope.freq"]   # tensors that the engine computes: left out
//! kv_replication = true                # false: the engine takes no more ranks than KV heads
//! expert_map = "model.layers.{layer}.mlp.experts.expert_map"   # with expert parallelism: I32
//!                                      # [experts], an expert's position on its rank, or -1
//!
//! [[architecture.tensor]]              # roles that are not listed keep their names
//! roles = ["mlp.gate", "mlp.up"]       # several: one after another, row by row
//! name = "model.layers.{layer}.mlp.gate_up_proj.{suffix}"      # suffix: weight, weight_scale_inv
//! stack = false                        # true: one matrix an expert, as a third dimension
//! dtype = "F32"                        # widened to this
//! when = { router_dtype = "fp32" }     # … if config.json has this value
//! unless = "q_lora_rank"               # … unless config.json has a number there
//!
//! [[architecture.constant]]            # a scalar that no checkpoint holds
//! name = "model.layers.{layer}.attn.scale"
//! value = 1.0
//! fp8 = false                          # true: only if weights are FP8
//! ```

mod rules;
mod select;

use globset::{Glob, GlobMatcher};
use serde::Deserialize;

pub use self::rules::{Constant, Place, Rules};
use self::select::numbers;
use crate::error::{Error, Result};
use crate::model::Role;
use crate::model::parallel::{RankOnly, Remainder};

/// Longest target file in bytes.
const MAX_FILE: usize = 1 << 20;

/// A parsed target; the head of this file shows its form.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Name of the profile.
    pub name: String,
    /// Name of the engine.
    pub engine: String,
    /// One line for people.
    pub description: String,
    versions: [String; 2],
    /// Files and cuts.
    pub layout: Layout,
    /// How the engine is started.
    pub launch: Launch,
    #[serde(default, rename = "architecture")]
    architectures: Vec<Rules>,
}

/// Files and cuts of a target.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// What a file holds.
    pub form: Form,
    file: String,
    stage_file: String,
    /// Stages that take the layers which do not divide evenly.
    pub remainder: Remainder,
    /// Rows of the vocabulary are padded with zeros to a multiple of this.
    #[serde(default = "one")]
    pub vocab_multiple: u64,
    /// What a rank's share of an expert's intermediate size must divide by.
    #[serde(default = "one")]
    pub expert_multiple: u64,
    /// Roles that every stage has.
    #[serde(default)]
    pub every_stage: Vec<Role>,
    expert_file: Option<String>,
}

/// What a file of a target holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// Tensors of one rank, cut and fused as the engine holds them.
    Ranks,
    /// Tensors of one pipeline stage, as they are.
    Stages,
}

/// How an engine is started.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    command: String,
    stages: Option<StageLines>,
    expert_parallel: String,
    partition: String,
}

/// Lines for the folder of each stage.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum StageLines {
    /// Bring it to its node; then the command starts the engine.
    Before(String),
    /// Start the engine on its node.
    Instead(String),
}

/// What a launch line depends on.
#[derive(Debug, Clone, Copy)]
pub struct Split<'a> {
    /// Tensor parallel size.
    pub tp: u32,
    /// Pipeline parallel size.
    pub pp: u32,
    /// Expert parallel size.
    pub ep: u32,
    /// Layers of each stage if the engine would choose others.
    pub partition: Option<&'a [u32]>,
    /// Stages whose files are written.
    pub written: &'a [u32],
}

/// Path of the model on every node where each has the folder of its own stage.
const ON_EVERY_NODE: &str = "/path/on/every/node";

fn one() -> u64 {
    1
}

impl Target {
    /// Parses a target file. Every mistake in it is [`crate::error::Kind::Usage`].
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() > MAX_FILE {
            return Err(Error::usage(format!("target file of more than {MAX_FILE} bytes")));
        }
        let target: Self = toml::from_str(text)
            .map_err(|e| Error::usage(format!("malformed target file: {}", e.message())))?;
        target.check()?;
        Ok(target)
    }

    fn check(&self) -> Result<()> {
        let fail = |what: &str| Err(Error::usage(format!("target {:?}: {what}", self.name)));
        if self.versions.iter().any(|v| numbers(v).is_none()) {
            return fail("versions are numbers with dots between them");
        }
        let layout = &self.layout;
        if layout.vocab_multiple == 0 || layout.expert_multiple == 0 {
            return fail("a multiple of 0");
        }
        for (name, needs_stage) in [(&layout.file, false), (&layout.stage_file, true)] {
            let keys: &[&str] = match layout.form {
                Form::Ranks => &["{tp}", "{part}"],
                Form::Stages => &["{shard}"],
            };
            if !keys.iter().all(|key| name.contains(key)) || name.contains("{pp}") != needs_stage {
                return fail("a file name lacks a part, or has {pp} in the wrong place");
            }
        }
        let expert_file = layout.expert_file.as_deref().unwrap_or("{ep}{shard}");
        if !["{ep}", "{shard}"].iter().all(|key| expert_file.contains(key)) {
            return fail("the name of an expert file lacks {ep} or {shard}");
        }
        if let Some(problem) = self.architectures.iter().find_map(Rules::problem) {
            return fail(problem);
        }
        Ok(())
    }

    /// Rules for an architecture; `None` if the target does not know it.
    pub fn rules(&self, architecture: &str) -> Option<&Rules> {
        self.architectures.iter().find(|a| a.name == architecture)
    }

    /// Names of the architectures it knows.
    pub fn architectures(&self) -> impl Iterator<Item = &str> {
        self.architectures.iter().map(|a| a.name.as_str())
    }

    /// Lines that start the engine; `{out}` stands for the output folder. Where stages have folders
    /// of their own, a line for each that is written.
    pub fn launch(&self, split: &Split) -> Vec<String> {
        let launch = &self.launch;
        let apart = split.pp > 1 && self.layout.folder(0).is_some();
        let filled = |line: &str, stage: u32| {
            line.replace("{model}", if apart { ON_EVERY_NODE } else { "{out}" })
                .replace("{tp}", &split.tp.to_string())
                .replace("{pp}", &split.pp.to_string())
                .replace("{stage}", &stage.to_string())
                .replace("{ep}", if split.ep > 1 { &launch.expert_parallel } else { "" })
                .replace("{ep_size}", &split.ep.to_string())
        };
        let layers = |layers: &[u32]| {
            let layers: Vec<String> = layers.iter().map(u32::to_string).collect();
            launch.partition.replace("{layers}", &layers.join(","))
        };
        let partition = split.partition.map(layers).unwrap_or_default();
        let command = partition.clone() + &filled(&launch.command, 0);
        let of_stages = |line: &str, prefix: &str| -> Vec<String> {
            split.written.iter().map(|s| prefix.to_owned() + &filled(line, *s)).collect()
        };
        match &launch.stages {
            Some(StageLines::Before(line)) if apart => {
                of_stages(line, "").into_iter().chain([command]).collect()
            }
            Some(StageLines::Instead(line)) if apart => of_stages(line, &partition),
            _ => vec![command],
        }
    }
}

impl Layout {
    /// Path of a part of a rank's tensors; `stage` where there are several.
    pub fn path(&self, stage: Option<u32>, rank: u32, part: usize) -> String {
        let pattern = if stage.is_some() { &self.stage_file } else { &self.file };
        pattern
            .replace("{pp}", &stage.unwrap_or(0).to_string())
            .replace("{tp}", &rank.to_string())
            .replace("{part}", &part.to_string())
    }

    /// Path of a shard of the original, or of the experts in it that expert parallel rank `expert`
    /// holds; `stage` where there are several.
    pub fn shard_path(&self, stage: Option<usize>, expert: Option<u32>, shard: &str) -> String {
        let pattern = if stage.is_some() { &self.stage_file } else { &self.file };
        let name = match (expert, &self.expert_file) {
            (Some(ep), Some(pattern)) => {
                // Shards may lie in folders; it is the file's name that changes.
                let (folder, file) = shard.rsplit_once('/').map_or(("", shard), |(f, n)| (f, n));
                let slash = if folder.is_empty() { "" } else { "/" };
                let named = pattern.replace("{ep}", &ep.to_string()).replace("{shard}", file);
                format!("{folder}{slash}{named}")
            }
            _ => shard.to_owned(),
        };
        pattern.replace("{pp}", &stage.unwrap_or(0).to_string()).replace("{shard}", &name)
    }

    /// Whether the experts of each expert parallel rank have files of their own.
    pub fn deals_experts(&self) -> bool {
        self.expert_file.is_some()
    }

    /// Matches the paths of all files of these ranks; `staged` where there are several stages.
    pub fn paths_of(&self, ranks: &RankOnly, staged: bool) -> Result<GlobMatcher> {
        let mut glob = globset::escape(if staged { &self.stage_file } else { &self.file });
        let keys = [("pp", ranks.pp), ("tp", ranks.tp), ("part", None), ("shard", None)];
        for (key, rank) in keys {
            let number = rank.map_or("*".to_owned(), |rank| rank.to_string());
            glob = glob.replace(&format!("[{{]{key}[}}]"), &number);
        }
        let glob =
            Glob::new(&glob).map_err(|e| Error::usage(format!("file name {glob:?}: {e}")))?;
        Ok(glob.compile_matcher())
    }

    /// Folder of a stage, if stages have folders of their own.
    pub fn folder(&self, stage: usize) -> Option<String> {
        let (folder, _) = self.stage_file.rsplit_once('/')?;
        Some(folder.replace("{pp}", &stage.to_string()))
    }
}

#[cfg(test)]
mod tests;
