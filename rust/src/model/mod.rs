//! What the tensors of a checkpoint mean: architectures as declarative data, bound to a config.
//!
//! An [`Architecture`] is a TOML file of `data/architectures`: name patterns, roles and symbolic
//! shapes. Bound to a `config.json` it becomes a [`Model`], which knows every tensor that the
//! checkpoint should hold and gives each name its role. Nothing here touches files.

mod architecture;
mod bound;
mod expr;
pub mod parallel;
mod pattern;
mod role;

pub(crate) use pattern::Pattern;

pub use architecture::{Architecture, TensorRule, Where};
pub use bound::{Expected, LayerKind, MAX_EXPERTS, MAX_LAYERS, MAX_TENSORS, Model, Placed};
pub use role::{Axis, Group, Role};

#[cfg(test)]
mod tests;
