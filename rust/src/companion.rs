//! Which tensor holds the scales of an FP8 weight, and how they are laid out.
//!
//! A companion's presence, dtype and shape are the truth; config.json is not asked.

use crate::dtype::Dtype;
use crate::numeric::{Grid, ScaleDtype};
use crate::transform::scale_dtype_of;

/// Suffixes of scale tensors, appended to the weight's name.
const SUFFIXES: [&str; 2] = ["_scale_inv", "_scale"];
/// The one block size that checkpoints are published with.
const BLOCK: Grid = Grid::Block { rows: 128, cols: 128 };

/// The scales of a weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Companion {
    /// Full name of the scale tensor.
    pub name: String,
    /// Which elements share a scale.
    pub grid: Grid,
    /// Element type of the scales.
    pub dtype: ScaleDtype,
}

/// The name of the weight that a scale belongs to; any other name as it is.
pub fn weight_of(name: &str) -> &str {
    SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name)
}

/// Whether a name is that of a weight's scales.
pub fn is_scale(name: &str) -> bool {
    let weight = weight_of(name);
    weight.len() < name.len() && weight.ends_with(".weight")
}

/// Finds the scales of the E4M3 weight `name` of `shape`; `lookup` gives dtype and shape of a
/// tensor by name. The error says in a few words what is wrong.
pub fn find<'t>(
    name: &str,
    shape: &[u64],
    lookup: impl Fn(&str) -> Option<(Dtype, &'t [u64])>,
) -> Result<Companion, String> {
    let [rows, cols] = *shape else {
        return Err(format!("FP8 of shape {shape:?}, a matrix is needed"));
    };
    let names = SUFFIXES.map(|suffix| format!("{name}{suffix}"));
    let mut found = names.into_iter().filter_map(|name| lookup(&name).map(|it| (name, it)));
    let (name, (dtype, held)) =
        found.next().ok_or("no scale: neither …_scale_inv nor …_scale exists")?;
    if found.next().is_some() {
        return Err("two scales, …_scale_inv and …_scale".into());
    }
    let scale_dtype = scale_dtype_of(dtype).ok_or_else(|| format!("scale {name} is {dtype}"))?;
    let (high, wide) = BLOCK.scale_shape(rows as usize, cols as usize);
    let blocks = [high as u64, wide as u64];
    let grid = match held {
        shape if *shape == blocks => BLOCK,
        [high, 1] | [high] if *high == rows => Grid::Channel,
        shape => {
            return Err(format!(
                "scale {name} has shape {shape:?}; a weight of {rows}×{cols} needs {blocks:?} for \
                 128×128 blocks or [{rows}, 1] for channels"
            ));
        }
    };
    Ok(Companion { name, grid, dtype: scale_dtype })
}
