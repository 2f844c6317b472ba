//! Which tensors a synthetic checkpoint holds, and in which file each lies.

use crate::dialect::{Dialect, ScaleKind};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::header::{self, Entry};
use crate::model::{Expected, Model, Role};
use crate::numeric::{Arith, Encoding};

/// Files are numbered with five digits.
const MAX_SHARDS: u64 = 99_999;

/// A weight as the generator knows it; FP8 codes and scales are made from its BF16 values.
#[derive(Debug, Clone)]
pub(super) struct Weight {
    pub name: Box<str>,
    pub role: Role,
    pub rows: u64,
    pub cols: u64,
}

/// What of a weight is stored.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form {
    /// BF16 values.
    Bf16,
    /// F32 values.
    F32,
    /// E4M3 codes of the BF16 values.
    Codes(Encoding),
    /// F32 scales of those codes.
    Scales(Encoding),
}

/// A stored tensor.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub weight: Weight,
    pub form: Form,
}

/// One file: header entries, already laid out, and the source of each one's data.
#[derive(Debug)]
pub(super) struct Shard {
    pub name: String,
    pub entries: Vec<Entry>,
    pub tensors: Vec<Stored>,
    pub data_len: u64,
}

/// All tensors of `model` in natural order; with `fp8` each encoded weight is followed by its
/// scales, as dialect `deepseek` spells them.
pub(super) fn tensors(model: &Model, fp8: bool) -> Result<Vec<(Entry, Stored)>> {
    let dialect = Dialect::builtin("deepseek")
        .ok_or_else(|| Error::internal("dialect deepseek does not parse"))?;
    let mut tensors = Vec::with_capacity(model.expected_count() as usize);
    for expected in model.expected() {
        if !(fp8 && expected.rule.quantize) {
            tensors.push(plain(&expected)?);
            continue;
        }
        let encoding = dialect
            .encoding(Some(expected.rule.role.name()), ScaleKind::F32, Arith::Ieee)
            .map_err(Error::internal)?;
        let weight = weight(&expected);
        let (rows, cols) = encoding.grid.scale_shape(weight.rows as usize, weight.cols as usize);
        let scales =
            entry(&dialect.scale_name(&expected.name), Dtype::F32, &[rows as u64, cols as u64]);
        let codes = entry(&expected.name, Dtype::F8E4M3, expected.shape);
        tensors.push((codes, Stored { weight: weight.clone(), form: Form::Codes(encoding) }));
        tensors.push((scales, Stored { weight, form: Form::Scales(encoding) }));
    }
    Ok(tensors)
}

fn plain(expected: &Expected<'_>) -> Result<(Entry, Stored)> {
    let form = match expected.rule.dtype {
        Dtype::BF16 => Form::Bf16,
        Dtype::F32 => Form::F32,
        other => {
            return Err(
                Error::internal(format!("cannot synthesise {other}")).tensor(&*expected.name)
            );
        }
    };
    let entry = entry(&expected.name, expected.rule.dtype, expected.shape);
    Ok((entry, Stored { weight: weight(expected), form }))
}

fn weight(expected: &Expected<'_>) -> Weight {
    let (cols, rows) = expected.shape.split_last().map_or((1, &[][..]), |(c, rest)| (*c, rest));
    Weight {
        name: expected.name.as_str().into(),
        role: expected.rule.role,
        rows: rows.iter().product(),
        cols,
    }
}

fn entry(name: &str, dtype: Dtype, shape: &[u64]) -> Entry {
    Entry { name: name.into(), dtype, shape: shape.into(), begin: 0, end: 0 }
}

/// Deals `tensors` in order to as many files as `shard_size` bytes of data each ask for, so that
/// all are about equally large.
pub(super) fn shards(mut tensors: Vec<(Entry, Stored)>, shard_size: u64) -> Result<Vec<Shard>> {
    let mut entries: Vec<Entry> = tensors.iter().map(|t| t.0.clone()).collect();
    let total = header::lay_out(&mut entries)?;
    let count = total.checked_div(shard_size).map(|_| total.div_ceil(shard_size).max(1));
    let Some(count) = count.filter(|n| *n <= MAX_SHARDS) else {
        return Err(Error::usage(format!("{total} bytes in files of {shard_size} bytes"))
            .hint(format!("choose a shard size that gives at most {MAX_SHARDS} files")));
    };
    let file_of = |e: &Entry| {
        let middle = u128::from(e.begin) + u128::from(e.bytes() / 2);
        middle * u128::from(count) / u128::from(total.max(1))
    };
    let runs: Vec<usize> =
        entries.chunk_by(|a, b| file_of(a) == file_of(b)).map(<[Entry]>::len).collect();
    let mut rest = tensors.drain(..);
    runs.iter()
        .enumerate()
        .map(|(i, run)| {
            let (mut entries, tensors): (Vec<_>, Vec<_>) = rest.by_ref().take(*run).unzip();
            let data_len = header::lay_out(&mut entries)?;
            let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, runs.len());
            Ok(Shard { name, entries, tensors, data_len })
        })
        .collect()
}
