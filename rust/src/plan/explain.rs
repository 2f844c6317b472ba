//! Where one tensor comes from and goes to.

use serde_json::{Value, json};

use super::data::{OutputFile, Plan, Task};
use super::step::Step;
use crate::catalog::Catalog;
use crate::error::{Error, Result};
use crate::header::Entry;
use crate::transform::Op;

/// Explains a tensor by its name in the source or in an output: where it is read, what happens,
/// where it is written. [`Kind::Usage`](crate::error::Kind::Usage) if no tensor has that name.
pub fn explain(catalog: &Catalog, plan: &Plan, name: &str) -> Result<Value> {
    let source = catalog.find(name);
    if let Some(dropped) = plan.dropped.iter().find(|d| Some(d.tensor) == source) {
        return Ok(json!({
            "tensor": name,
            "source": source_json(catalog, dropped.tensor),
            "dropped": dropped.reason,
        }));
    }
    // What a name is written with comes first: a source tensor may be written under another's name.
    let writes = |task: &Task, step: &Step| {
        step.targets.iter().any(|t| {
            let tensors = &task.outputs[t.output as usize].tensors;
            let is = |i: u32| &*tensors[i as usize].name == name;
            is(t.tensor) || t.scale.is_some_and(is)
        })
    };
    let reads = |_: &Task, step: &Step| {
        let reads_scale = matches!(step.op, Op::Decode { scale, .. } if Some(scale) == source);
        reads_scale || Some(step.source) == source
    };
    for found in [&writes as &dyn Fn(&Task, &Step) -> bool, &reads] {
        for task in &plan.tasks {
            let Some(first) = task.steps.iter().find(|step| found(task, step)) else { continue };
            let steps = task.steps.iter().filter(|step| step.source == first.source);
            return Ok(steps_json(catalog, &task.outputs, (first, steps), name));
        }
    }
    Err(Error::usage("neither the source nor the output has such a tensor")
        .tensor(name)
        .hint("list the names with `lingconv inspect --tree`"))
}

fn source_json(catalog: &Catalog, index: u32) -> Value {
    let tensor = catalog.tensor(index);
    json!({
        "name": &*tensor.name,
        "file": catalog.shard_of(index).name,
        "dtype": tensor.dtype,
        "shape": tensor.shape,
        "offset": tensor.offset,
        "bytes": tensor.bytes,
    })
}

fn entry_json(output: &OutputFile, entry: &Entry) -> Value {
    json!({
        "name": &*entry.name,
        "file": output.path,
        "dtype": entry.dtype,
        "shape": entry.shape,
        "offset": output.data_start + entry.begin,
        "bytes": entry.bytes(),
    })
}

/// The steps of one source tensor.
fn steps_json<'a>(
    catalog: &Catalog,
    outputs: &[OutputFile],
    (step, steps): (&Step, impl Iterator<Item = &'a Step>),
    name: &str,
) -> Value {
    let mut sources = vec![source_json(catalog, step.source)];
    let mut parameters = Value::Null;
    match step.op {
        Op::Copy { .. } | Op::Widen { .. } => {}
        Op::Encode { encoding, .. } => parameters = json!(encoding),
        Op::Decode { grid, scale, scale_dtype } => {
            sources.push(source_json(catalog, scale));
            parameters = json!({ "grid": grid, "scale_dtype": scale_dtype });
        }
    }
    let targets: Vec<Value> = steps
        .flat_map(|step| &step.targets)
        .flat_map(|t| {
            let output = &outputs[t.output as usize];
            let written = std::iter::once(t.tensor).chain(t.scale);
            written.map(move |i| {
                let mut value = entry_json(output, &output.tensors[i as usize]);
                if i == t.tensor && (t.rows != (0..step.rows) || t.cols != (0..step.cols)) {
                    value["rows"] = json!([t.rows.start, t.rows.end]);
                    value["cols"] = json!([t.cols.start, t.cols.end]);
                }
                value
            })
        })
        .collect();
    json!({
        "tensor": name,
        "operation": step.op.name(),
        "parameters": parameters,
        "sources": sources,
        "targets": targets,
    })
}
