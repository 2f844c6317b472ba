//! Which source tensors make up which output tensor.

use std::collections::BTreeMap;

use super::Context;
use super::legal::has_blocks;
use crate::catalog::Tensor;
use crate::companion::{is_scale, weight_of};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::model::{LayerKind, Placed, Role};
use crate::numeric::Encoding;
use crate::plan::select::Choice;
use crate::transform::{Op, float_of};

/// Tensors that are planned together: what every stage has, or stands before, in and behind the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Group {
    EveryStage,
    Before,
    Layer(u32),
    After,
}

/// A source tensor's share of an output tensor.
#[derive(Debug)]
pub(super) struct Member<'a> {
    pub source: u32,
    pub placed: Placed<'a>,
    /// Position in the output tensor; after the expert where experts are stacked.
    position: u32,
    pub op: Op,
    /// Whether this is the scale tensor of a weight, which is cut in blocks.
    pub scale: bool,
}

/// An output tensor, the same for every rank but for the cuts.
#[derive(Debug)]
pub(super) struct Fused<'a> {
    pub members: Vec<Member<'a>>,
    pub dtype: Dtype,
    pub stack: bool,
    /// Name and encoding of the scales that encoding makes.
    pub encoded: Option<(String, Encoding)>,
    /// What it holds if no source holds it.
    pub constant: Option<Constant>,
}

/// What no checkpoint holds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Constant {
    /// An F32 scalar.
    Scalar(f32),
    /// For each expert its position on the rank, or -1: I32 [experts].
    ExpertMap,
}

/// All output tensors by group and name.
pub(super) struct Gathered<'a> {
    pub groups: BTreeMap<Group, BTreeMap<String, Fused<'a>>>,
    /// Tensors of MTP layers.
    pub mtp: Vec<u32>,
    /// Tensors that the engine computes itself.
    pub computed: Vec<u32>,
}

/// Gathers every tensor of the catalog.
pub(super) fn gather<'a>(context: &'a Context, choices: Option<&[Choice]>) -> Result<Gathered<'a>> {
    let mut gathered = Gathered { groups: BTreeMap::new(), mtp: Vec::new(), computed: Vec::new() };
    for (index, tensor) in context.catalog.tensors.iter().enumerate() {
        let choice = choices.map_or(Choice::Keep, |c| c[index]);
        gathered.add(context, index as u32, tensor, choice)?;
    }
    for (group, tensors) in &mut gathered.groups {
        for (name, fused) in tensors.iter_mut() {
            fused.settle(context).map_err(|e| e.tensor(name))?;
        }
        if let Group::Layer(layer) = *group {
            tensors.extend(constants(context, layer));
        }
    }
    Ok(gathered)
}

/// What `layer` has that no source holds, by name.
fn constants<'a>(context: &Context, layer: u32) -> BTreeMap<String, Fused<'a>> {
    let Some(rules) = context.rules else { return BTreeMap::new() };
    let scalar = |c: &crate::target::Constant| {
        (c.name(layer), Fused::constant(Dtype::F32, Constant::Scalar(c.value)))
    };
    let fp8 = has_blocks(context);
    let present = rules.constant.iter().filter(|c| fp8 || !c.fp8);
    let mut found: BTreeMap<_, _> = present.map(scalar).collect();
    let placed = context.ask.ep > 1 && context.model.layer_kind(layer) == Some(LayerKind::Moe);
    if let Some(name) = rules.expert_map(layer).filter(|_| placed) {
        found.insert(name, Fused::constant(Dtype::I32, Constant::ExpertMap));
    }
    found
}

impl<'a> Gathered<'a> {
    fn add(
        &mut self,
        context: &'a Context,
        index: u32,
        tensor: &Tensor,
        choice: Choice,
    ) -> Result<()> {
        if context.rules.is_some_and(|r| r.computes(&tensor.name)) {
            self.computed.push(index);
            return Ok(());
        }
        let scale = is_scale(&tensor.name);
        let weight = if scale { weight_of(&tensor.name) } else { &tensor.name };
        let placed = context.model.role_of(weight).ok_or_else(|| {
            Error::impossible(format!("no part of {} is called so", context.model.architecture()))
                .tensor(&*tensor.name)
                .at(context.catalog.path_of(index))
        })?;
        if context.model.is_mtp(placed.layer) {
            self.mtp.push(index);
            return Ok(());
        }
        if !scale {
            check_shape(placed, tensor).map_err(|e| e.at(context.catalog.path_of(index)))?;
        }
        let moved = context.experts.as_ref().and_then(|e| e.moved(placed, &tensor.name));
        let (placed, name) = moved.unwrap_or_else(|| (placed, tensor.name.to_string()));
        let role = placed.rule.role;
        let group = match placed.layer {
            _ if context.on_every_stage(role) => Group::EveryStage,
            Some(layer) => Group::Layer(layer),
            None if role == Role::Embedding => Group::Before,
            None => Group::After,
        };
        let place = context.place(role, &name, placed.layer);
        let (op, dtype) = operation(context, tensor, choice, place.dtype, scale)
            .map_err(|e| e.tensor(&*tensor.name).at(context.catalog.path_of(index)))?;
        let encoded = match op {
            Op::Encode { encoding, .. } => {
                let scales = context.request.load_dialect()?.scale_name(&name);
                Some((context.place(role, &scales, placed.layer).name, encoding))
            }
            _ => None,
        };
        let member = Member { source: index, placed, position: place.position, op, scale };
        let tensors = self.groups.entry(group).or_default();
        let fused = tensors.entry(place.name).or_insert_with(|| Fused {
            members: Vec::new(),
            dtype,
            stack: place.stack,
            encoded: encoded.clone(),
            constant: None,
        });
        if fused.dtype != dtype || fused.encoded != encoded {
            return Err(Error::impossible(format!(
                "{dtype} here, {} in the tensor it is fused with",
                fused.dtype
            ))
            .tensor(&*tensor.name)
            .at(context.catalog.path_of(index))
            .hint("fused weights have one format: choose all of them or none"));
        }
        fused.members.push(member);
        Ok(())
    }
}

/// Refuses a tensor of which config.json says nothing, or another shape: cuts are made from both.
fn check_shape(placed: Placed, tensor: &Tensor) -> Result<()> {
    let wrong = match placed.shape {
        Some(shape) if placed.expected && *shape == *tensor.shape => return Ok(()),
        Some(shape) if placed.expected => {
            format!("shape {:?}, config.json implies {shape:?}", tensor.shape)
        }
        _ => "config.json implies no such tensor".to_owned(),
    };
    Err(Error::invalid(wrong)
        .tensor(&*tensor.name)
        .hint("config.json and the shards are of different revisions; download both again"))
}

/// What happens to a tensor, and the element type of the result.
fn operation(
    context: &Context,
    tensor: &Tensor,
    choice: Choice,
    wanted: Option<Dtype>,
    scale: bool,
) -> Result<(Op, Dtype)> {
    if let (Choice::Encode(role), Some(float)) = (choice, float_of(tensor.dtype)) {
        let encoding = context
            .request
            .load_dialect()?
            .encoding(role.map(Role::name), context.request.scale, context.request.scale_arith)
            .map_err(Error::usage)?;
        return Ok((Op::Encode { float, encoding }, Dtype::F8E4M3));
    }
    let wanted = wanted.or(scale.then_some(Dtype::F32)).unwrap_or(tensor.dtype);
    if wanted == tensor.dtype {
        return Ok((Op::Copy { unit: (tensor.dtype.bits() / 8) as u32 }, tensor.dtype));
    }
    match float_of(tensor.dtype) {
        Some(float) => Ok((Op::Widen { float }, wanted)),
        None => Err(Error::impossible(format!(
            "{} is {wanted} in {}, and {} cannot be widened to that",
            if scale { "a scale" } else { "the tensor" },
            context.target.name,
            tensor.dtype
        ))),
    }
}

impl Fused<'_> {
    fn constant(dtype: Dtype, value: Constant) -> Self {
        Self { members: Vec::new(), dtype, stack: false, encoded: None, constant: Some(value) }
    }

    /// Brings the members into order and checks that none is missing.
    fn settle(&mut self, context: &Context) -> Result<()> {
        self.members.sort_by_key(|m| (m.placed.expert, m.position));
        let positions = self.members.iter().map(|m| m.position).max().unwrap_or(0) as usize + 1;
        let experts = if self.stack { context.model.experts() as usize } else { 1 };
        if self.members.len() == positions * experts {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "made of {} tensors, the checkpoint holds {}",
            positions * experts,
            self.members.len()
        ))
        .hint("the download is incomplete: check it with `lingconv verify`"))
    }
}
