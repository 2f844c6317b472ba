//! `--experts MAP`: the experts of a layer in another order.
//!
//! `{"physical_to_logical_map": [[…], …]}` has a row a layer; position q of the new order holds the
//! old expert at q. The experts' matrices with their scales, the rows of the router and its bias
//! move together, so that the model computes the same. Rows of dense layers change nothing; MTP
//! layers are no rows. Numbers are those of the original, whatever it was cut into since.

use std::ops::Range;

use serde::Deserialize;

use super::Reshard;
use crate::catalog::Catalog;
use crate::companion::weight_of;
use crate::error::{Error, Result};
use crate::json;
use crate::model::{LayerKind, Model, Placed, Role};
use crate::target::{Form, Target};

/// Longest map in bytes; that of 80 layers of 256 experts has some 80 KB.
const MAX_MAP: usize = 16 << 20;

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Map {
    physical_to_logical_map: Vec<Vec<u32>>,
}

/// The new order of the experts of each layer.
#[derive(Debug)]
pub(super) struct Experts {
    /// Per layer the old expert at each new position.
    order: Vec<Vec<u32>>,
    /// Per layer the new position of each old expert.
    position: Vec<Vec<u32>>,
}

/// The map that files of this layout follow: the one asked for, else the one that the source was
/// written with. The original itself has none.
pub(super) fn in_force(
    catalog: &Catalog,
    ask: &Reshard,
    target: &Target,
) -> Result<Option<String>> {
    let recorded = catalog.pieces.as_ref().and_then(|pieces| pieces.experts.as_ref());
    match (&ask.experts, recorded) {
        (None, Some(recorded)) if !(target.layout.form == Form::Stages && ask.pp == 1) => {
            Ok(Some(recorded.clone()))
        }
        (None, _) => Ok(None),
        (Some(asked), Some(recorded)) if parse(asked)? != parse(recorded)? => {
            Err(Error::impossible("the experts are in the order of another map already")
                .at(catalog.root.path())
                .hint("put the original together first: `lingconv reshard --target hf`"))
        }
        (Some(asked), _) => Ok(Some(asked.clone())),
    }
}

fn parse(text: &str) -> Result<Map> {
    if text.len() > MAX_MAP {
        return Err(broken(format!("more than {MAX_MAP} bytes")));
    }
    serde_json::from_str(text).map_err(|e| broken(json::error(&e, "no such map").message))
}

fn broken(what: impl std::fmt::Display) -> Error {
    Error::invalid(format!("map of experts: {what}"))
        .hint("make one with `lingconv experts place LOADS --ep N -o MAP`")
}

impl Experts {
    /// The map `text` for `model`.
    ///
    /// # Errors
    /// [`Kind::Invalid`](crate::error::Kind::Invalid) if it is no permutation of each layer's
    /// experts, [`Kind::Impossible`](crate::error::Kind::Impossible) if the router could not reach
    /// the same experts any more.
    pub(super) fn new(text: &str, model: &Model) -> Result<Self> {
        let order = parse(text)?.physical_to_logical_map;
        if order.len() != model.layers() as usize {
            let rows = order.len();
            return Err(broken(format!("{rows} rows, the model has {} layers", model.layers())));
        }
        let mut position = Vec::with_capacity(order.len());
        for (layer, row) in order.iter().enumerate() {
            position.push(inverse(row, model.experts(), layer)?);
            let moved = row.iter().zip(0..).find(|(old, new)| *old != new);
            match (model.layer_kind(layer as u32), moved) {
                (Some(LayerKind::Moe), Some(_)) => refuse_groups(row, model, layer)?,
                (_, Some((old, new))) => {
                    return Err(broken(format!(
                        "layer {layer} is dense, its row moves expert {old} to {new}"
                    )));
                }
                (_, None) => {}
            }
        }
        Ok(Self { order, position })
    }

    /// The old experts of `layer` by their new positions; `None` where none moves, as in MTP layers.
    fn order(&self, layer: Option<u32>) -> Option<&[u32]> {
        let row = self.order.get(layer? as usize)?;
        row.iter().zip(0..).any(|(old, new)| *old != new).then_some(row)
    }

    /// Where the tensor `name` of an expert goes: its place and name in the new order.
    pub(super) fn moved<'m>(&self, placed: Placed<'m>, name: &str) -> Option<(Placed<'m>, String)> {
        let (layer, old) = (placed.layer?, placed.expert?);
        let new = *self.position.get(layer as usize)?.get(old as usize)?;
        Some((Placed { expert: Some(new), ..placed }, renamed(placed, name, new)))
    }

    /// Name of the tensor whose content goes to `name`.
    pub(super) fn content_of(&self, placed: Placed, name: &str) -> Option<String> {
        let (layer, new) = (placed.layer?, placed.expert?);
        let old = *self.order.get(layer as usize)?.get(new as usize)?;
        Some(renamed(placed, name, old))
    }

    /// Rows of a router's tensor in their new order, as runs of the old; `None` for what has no row
    /// an expert, or none that moves.
    pub(super) fn rows(&self, placed: Placed, rows: u64) -> Result<Option<Vec<Range<u64>>>> {
        let router = matches!(placed.rule.role, Role::RouterWeight | Role::RouterBias);
        let Some(order) = self.order(placed.layer).filter(|_| router) else { return Ok(None) };
        if order.len() as u64 != rows {
            return Err(Error::impossible(format!(
                "{rows} rows for {} experts cannot follow their order",
                order.len()
            )));
        }
        let mut runs: Vec<Range<u64>> = Vec::new();
        for old in order.iter().copied().map(u64::from) {
            match runs.last_mut() {
                Some(run) if run.end == old => run.end += 1,
                _ => runs.push(old..old + 1),
            }
        }
        Ok(Some(runs))
    }
}

/// `name`, a weight of an expert or its scale, for `expert`.
fn renamed(placed: Placed, name: &str, expert: u32) -> String {
    let suffix = &name[weight_of(name).len()..];
    placed.rule.name(placed.layer.unwrap_or_default(), expert) + suffix
}

fn inverse(row: &[u32], experts: u32, layer: usize) -> Result<Vec<u32>> {
    if row.len() != experts as usize {
        let length = row.len();
        return Err(broken(format!("layer {layer} has {length} entries for {experts} experts")));
    }
    let mut position = vec![u32::MAX; row.len()];
    for (old, new) in row.iter().zip(0..) {
        match position.get_mut(*old as usize) {
            Some(free) if *free == u32::MAX => *free = new,
            Some(_) => return Err(broken(format!("layer {layer} names expert {old} twice"))),
            None => {
                return Err(broken(format!(
                    "layer {layer} names expert {old}, the last is {}",
                    experts.saturating_sub(1)
                )));
            }
        }
    }
    Ok(position)
}

/// The router masks all but a few of the equal runs of experts that are its groups, so a new group
/// must hold exactly the experts of an old one; where it masks none, any order will do.
fn refuse_groups(row: &[u32], model: &Model, layer: usize) -> Result<()> {
    let groups = model.dim("groups").unwrap_or(1);
    if groups <= 1 || model.dim("groups_per_token").is_some_and(|kept| kept >= groups) {
        return Ok(());
    }
    let experts = u64::from(model.experts());
    if !experts.is_multiple_of(groups) {
        return Err(Error::invalid(format!("{experts} experts in {groups} routing groups")));
    }
    let size = (experts / groups) as usize;
    for (new, members) in row.chunks(size).enumerate() {
        let group = members[0] as usize / size;
        if let Some(stranger) = members.iter().find(|old| **old as usize / size != group) {
            return Err(Error::impossible(format!(
                "the map breaks the routing groups of layer {layer}: expert {stranger} of group {} \
                 comes together with experts of group {group} in group {new}",
                *stranger as usize / size
            ))
            .hint(
                "the router would choose other experts; `lingconv experts place --for files` \
                 keeps the groups",
            ));
        }
    }
    Ok(())
}
