//! Which tasks a worker runs.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::plan::Plan;

/// Most workers of one plan.
const MAX_WORKERS: u32 = 65_536;

/// One of several processes that run one plan, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// 1 to `count`.
    pub index: u32,
    /// Workers in all.
    pub count: u32,
}

impl Worker {
    /// The only worker.
    pub const ALONE: Self = Self { index: 1, count: 1 };

    /// Worker `index` of `count`.
    pub fn new(index: u32, count: u32) -> Result<Self> {
        if index >= 1 && index <= count && count <= MAX_WORKERS {
            return Ok(Self { index, count });
        }
        Err(Error::usage(format!(
            "worker {index}/{count}: the first number goes from 1 to the second"
        ))
        .hint("for example --worker 1/4 … --worker 4/4"))
    }

    /// Positions of the tasks that this worker runs, ascending: largest first, each to the worker
    /// with the fewest bytes so far. The same on every machine.
    pub fn tasks(self, plan: &Plan) -> Vec<usize> {
        let mut order: Vec<usize> = (0..plan.tasks.len()).collect();
        order.sort_by_key(|i| (std::cmp::Reverse(plan.tasks[*i].bytes()), *i));
        let mut loads: std::collections::BTreeSet<(u64, u32)> =
            (1..=self.count).map(|w| (0, w)).collect();
        let mut own = Vec::new();
        for i in order {
            let Some((load, worker)) = loads.pop_first() else { break };
            loads.insert((load + plan.tasks[i].bytes(), worker));
            if worker == self.index {
                own.push(i);
            }
        }
        own.sort_unstable();
        own
    }
}
