//! `reshard`: every rank's tensors in files of its own, cut and fused as the engine holds them.
//!
//! - `request`: what was asked for, and the target it names
//! - `legal`: every reason why a checkpoint cannot be cut so, found from shapes alone
//! - `gather`: which source tensors make up which output tensor
//! - `experts`: the experts of a layer in another order
//! - `tasks`: parts of at most one layer, each source tensor read once for all ranks
//! - `notes`: launch lines and `LINGCONV.md`
//! - `stages`: targets that keep the original's shards and names
//! - [`held`]: what each rank finds in its files
//! - [`fit`](mod@fit): which splits of a number of GPUs work

mod experts;
pub mod fit;
mod gather;
pub mod held;
mod legal;
mod notes;
mod request;
mod stages;
mod tasks;

pub use request::Reshard;

use std::collections::HashSet;

use serde_json::Value;

use self::experts::Experts;
use super::data::{Dropped, Expected, Plan, Rank, Sidecar, Task};
use super::quantize;
use super::request::Request;
use super::sidecars::{self, Index, Quantization, Sidecars};
use crate::allowance::Allowance;
use crate::catalog::{CONFIG, Catalog};
use crate::error::{Error, Result};
use crate::io::link::Link;
use crate::model::parallel::stages;
use crate::model::{Model, Role};
use crate::target::{Form, Place, Rules, Target};

/// Why tensors are left out.
const MTP: &str = "MTP layer, which the engine does not load this way";
const COMPUTED: &str = "the engine computes it";

/// What all steps of planning share.
struct Context<'a> {
    catalog: &'a Catalog,
    config: &'a Value,
    request: &'a Request,
    ask: &'a Reshard,
    model: &'a Model,
    target: &'a Target,
    /// Names and fusions; none where names are kept.
    rules: Option<&'a Rules>,
    /// Layers of each pipeline stage.
    stages: Vec<std::ops::Range<u32>>,
    /// The order of the experts, if it is not the original's.
    experts: Option<Experts>,
    /// What is left for further files.
    allowance: Allowance,
}

/// Tasks, what each rank reads, and the files that other runs have to write.
#[derive(Default)]
struct Work {
    tasks: Vec<Task>,
    ranks: Vec<Rank>,
    expected: Vec<Expected>,
}

impl Work {
    /// Notes what `others` would write.
    fn expect(&mut self, others: Self) {
        let outputs = others.tasks.into_iter().flat_map(|t| t.outputs);
        self.expected.extend(outputs.map(|o| Expected { path: o.path, size: o.size }));
    }
}

/// What a request names, found.
struct Loaded<'a> {
    ask: &'a Reshard,
    config: &'a Value,
    model: Model,
    target: Target,
}

impl<'a> Loaded<'a> {
    fn new(catalog: &'a Catalog, request: &'a Request) -> Result<Self> {
        let ask = request
            .reshard
            .as_ref()
            .ok_or_else(|| Error::usage("a request to reshard without a layout"))?;
        let target = ask.load_target()?;
        let config = catalog.config.as_ref();
        let (Some(model), Some(config)) = (request.load_model(catalog)?, config) else {
            return Err(Error::impossible("the architecture is unknown, so nothing can be cut")
                .at(catalog.root.path().join(CONFIG))
                .hint("describe the architecture with --arch FILE"));
        };
        if target.rules(model.architecture()).is_none() && target.layout.form == Form::Ranks {
            let known: Vec<&str> = target.architectures().collect();
            return Err(Error::impossible(format!(
                "target {} does not know {}; it knows {}",
                target.name,
                model.architecture(),
                known.join(", ")
            ))
            .hint("add its names to a copy of the target and give it with --target-file FILE"));
        }
        Ok(Self { ask, config, model, target })
    }

    /// Layers of each stage, with `pp` of them.
    fn stages(&self, pp: u32, explicit: &[u32]) -> Result<Vec<std::ops::Range<u32>>> {
        stages(self.model.layers(), pp, explicit, self.target.layout.remainder)
            .map_err(|e| Error::impossible(e).hint("see what works with `lingconv fit`"))
    }

    fn context<'c>(
        &'c self,
        catalog: &'c Catalog,
        request: &'c Request,
        ask: &'c Reshard,
        stages: Vec<std::ops::Range<u32>>,
    ) -> Context<'c> {
        let Self { config, model, target, .. } = self;
        let rules = target.rules(model.architecture());
        let (experts, allowance) = (None, Allowance::of_a_model());
        Context { catalog, config, request, ask, model, target, rules, stages, experts, allowance }
    }
}

/// Plans `reshard`.
pub fn plan(catalog: &Catalog, request: &Request) -> Result<Plan> {
    let mut request = request.clone();
    if let Some(ask) = &mut request.reshard {
        ask.experts = experts::in_force(catalog, ask, &ask.load_target()?)?;
    }
    let loaded = Loaded::new(catalog, &request)?;
    let ask = loaded.ask;
    let experts = ask.experts.as_deref();
    let experts = experts.map(|text| Experts::new(text, &loaded.model)).transpose()?;
    let stages = loaded.stages(ask.pp, &ask.pp_layers)?;
    Context { experts, ..loaded.context(catalog, &request, ask, stages) }.plan()
}

impl Context<'_> {
    fn plan(&self) -> Result<Plan> {
        match self.target.layout.form {
            Form::Ranks => self.plan_ranks(),
            Form::Stages => self.plan_stages(),
        }
    }

    fn plan_ranks(&self) -> Result<Plan> {
        if !matches!(self.ask.link, Link::Auto | Link::Copy) {
            return Err(Error::usage("--link is for targets that keep files as they are")
                .hint("leave out --link, or use --target hf"));
        }
        legal::refuse_source(self)?;
        legal::refuse_layout(self)?;
        let choices = match &self.ask.format {
            Some(_) => Some(quantize::choose(self.catalog, Some(self.model), self.request)?),
            None => None,
        };
        let gathered = gather::gather(self, choices.as_deref())?;
        let work = tasks::tasks(self, &gathered)?;
        let quantization = match choices.as_deref() {
            Some(choices) => {
                Quantization::Set(quantize::config(self.catalog, self.request, choices)?)
            }
            None => Quantization::Keep,
        };
        let mut warnings = self.catalog.warnings.clone();
        let mut dropped = Vec::new();
        for (tensors, which, why, reason) in [
            (&gathered.mtp, " of MTP layers", "does not load them", MTP),
            (&gathered.computed, "", "computes them", COMPUTED),
        ] {
            if let [first, ..] = tensors.as_slice() {
                warnings.push(format!(
                    "{} tensors{which} are left out, from {} on: {} {why}",
                    tensors.len(),
                    self.catalog.tensor(*first).name,
                    self.target.engine
                ));
            }
            dropped.extend(tensors.iter().map(|&tensor| Dropped { tensor, reason }));
        }
        let small = Sidecars { quantization, ..self.small() };
        let small = sidecars::plan(self.catalog, self.request, small)?;
        Ok(self.assemble(work, small, dropped, warnings))
    }

    fn plan_stages(&self) -> Result<Plan> {
        stages::refuse(self)?;
        let work = stages::tasks(self)?;
        let mut warnings = self.catalog.warnings.clone();
        if self.ask.tp > 1 {
            warnings.push(format!(
                "--tp {} changes no file of target {}",
                self.ask.tp, self.target.name
            ));
        }
        if self.ask.link == Link::Symlink {
            warnings.push(
                "symbolic links lead out of the folder: engines follow them, lingconv's own \
                 commands refuse to"
                    .to_owned(),
            );
        }
        let whole = self.catalog.pieces.as_ref().is_none_or(|p| p.lost.is_empty());
        let index = match (&self.catalog.raw_index, self.stage()) {
            (Some(raw), None) if whole && self.ask.ep == 1 => Index::Raw(raw.clone()),
            _ if self.catalog.indexed() || work.ranks.iter().any(|r| r.files > 1) => {
                Index::Tasks(&work.tasks)
            }
            _ if self.stage().is_some() => Index::Tasks(&work.tasks),
            _ => Index::None,
        };
        let mut small = Sidecars { index, ..self.small() };
        if self.stage().is_none() {
            small.extra.clear();
        }
        let small = sidecars::plan(self.catalog, self.request, small)?;
        Ok(self.assemble(work, small, Vec::new(), warnings))
    }

    /// Folders of the stages, and `LINGCONV.md`.
    fn small(&self) -> Sidecars<'_> {
        let written = |s: &usize| self.ask.has_stage(*s as u32);
        let stages = (0..self.stages.len()).filter(written);
        let folders = stages.filter_map(|s| self.stage().and(self.folder(s)));
        Sidecars {
            quantization: Quantization::Keep,
            index: Index::None,
            folders: folders.collect(),
            extra: vec![self.notes()],
        }
    }

    fn assemble(
        &self,
        Work { tasks, ranks, expected }: Work,
        (sidecars, config_changes): (Vec<Sidecar>, Vec<String>),
        dropped: Vec<Dropped>,
        warnings: Vec<String>,
    ) -> Plan {
        let elsewhere = self.elsewhere(&tasks, &dropped);
        Plan {
            elsewhere,
            request: self.request.clone(),
            catalog_digest: self.catalog.digest(),
            tasks,
            dropped,
            sidecars,
            config_changes,
            warnings,
            launch: self.launch(),
            ranks,
            expected,
        }
    }

    /// Tensors that only ranks need whose files are not written.
    fn elsewhere(&self, tasks: &[Task], dropped: &[Dropped]) -> Vec<u32> {
        if self.ask.rank.is_none() {
            return Vec::new();
        }
        let read = tasks.iter().flat_map(|t| &t.steps).map(|s| s.source);
        let known: HashSet<u32> = read.chain(dropped.iter().map(|d| d.tensor)).collect();
        (0..self.catalog.tensors.len() as u32).filter(|t| !known.contains(t)).collect()
    }

    /// Where a tensor goes.
    fn place(&self, role: Role, name: &str, layer: Option<u32>) -> Place {
        match self.rules {
            Some(rules) => rules.place(role, name, layer, self.config),
            None => Place { name: name.to_owned(), position: 0, stack: false, dtype: None },
        }
    }

    /// Whether every stage has the tensors of a role.
    fn on_every_stage(&self, role: Role) -> bool {
        let own = self.rules.is_some_and(|r| r.every_stage.contains(&role));
        own || self.target.layout.every_stage.contains(&role)
    }

    /// Whether names need a stage; the first of them if so.
    fn stage(&self) -> Option<usize> {
        (self.stages.len() > 1).then_some(0)
    }

    fn folder(&self, stage: usize) -> Option<String> {
        self.target.layout.folder(stage)
    }
}
