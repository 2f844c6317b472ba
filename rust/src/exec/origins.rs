//! What each tensor of a task's outputs was made of, for the manifest.

use std::collections::{HashMap, HashSet};

use super::figures::Figures;
use super::journal::DoneRecord;
use crate::plan::Task;
use crate::plan::step::Step;

/// Which steps of a task make the tensors of its outputs.
pub(super) struct Origins<'a> {
    pub(super) task: &'a Task,
    /// For each tensor of each output.
    of: Vec<Vec<Origin>>,
    /// Errors of source tensors.
    errors: HashMap<u32, Figures>,
}

/// The first step that makes a tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    /// Number of the step, or [`Origin::NONE`].
    step: u32,
    /// The source's error is that of the tensor: it is no scale, and has no other source.
    has_error: bool,
}

impl Origin {
    /// What no source holds.
    const NONE: u32 = u32::MAX;

    pub(super) fn step(self, task: &Task) -> Option<&Step> {
        task.steps.get(self.step as usize)
    }
}

impl<'a> Origins<'a> {
    pub(super) fn new(task: &'a Task, done: &DoneRecord) -> Self {
        let none = Origin { step: Origin::NONE, has_error: false };
        let mut of: Vec<Vec<Origin>> =
            task.outputs.iter().map(|o| vec![none; o.tensors.len()]).collect();
        for (number, step) in (0..).zip(&task.steps) {
            for target in &step.targets {
                let outputs = &mut of[target.output as usize];
                let known = &mut outputs[target.tensor as usize];
                match known.step(task) {
                    None => *known = Origin { step: number, has_error: true },
                    Some(first) => known.has_error &= first.source == step.source,
                }
                let scale = target.scale.map(|scale| &mut outputs[scale as usize]);
                if let Some(scale) = scale.filter(|scale| scale.step == Origin::NONE) {
                    *scale = Origin { step: number, has_error: false };
                }
            }
        }
        let errors = done.reports.iter().map(|r| (r.source, Figures::from(&r.stats))).collect();
        Self { task, of, errors }
    }

    /// The error of a tensor that `step` makes, if it was measured and is that of one source.
    pub(super) fn error(&self, origin: Origin, step: &Step) -> Option<Figures> {
        self.errors.get(&step.source).copied().filter(|_| origin.has_error)
    }

    /// The origin of a tensor of an output.
    pub(super) fn of(&self, output: usize, tensor: usize) -> Origin {
        self.of[output][tensor]
    }

    /// Source tensors whose errors are those of tensors of the outputs.
    pub(super) fn measured(&self) -> HashSet<u32> {
        let whole = self.of.iter().flatten().filter(|origin| origin.has_error);
        whole.filter_map(|origin| Some(origin.step(self.task)?.source)).collect()
    }
}
