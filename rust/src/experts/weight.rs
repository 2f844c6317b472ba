//! One matrix of an expert: read once, hashed and measured window by window.

use std::iter::once;
use std::ops::Range;

use super::Context;
use crate::catalog::{Catalog, Tensor};
use crate::companion;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::exec::hash::Xxh3;
use crate::exec::sources::Sources;
use crate::io::AlignedBuf;
use crate::numeric::{
    ErrorStats, Float, Grid, Moments, Tile, load_scales, measure as measure_error, moments,
    moments_of_codes, scan,
};
use crate::transform::{float_of, scale_dtype_of};

/// Elements of a window. Windows depend on the shape alone, so that sums do.
const WINDOW: u64 = 1 << 19;
/// Rows of a window are a multiple of the height of a block.
const QUANTUM: u64 = 128;
/// Longest row; the published models have rows of some thousands.
const MAX_COLS: u64 = 1 << 17;
/// Largest scale tensor in bytes.
const MAX_SCALES: u64 = 64 << 20;

/// Buffers of a thread.
#[derive(Default)]
pub(super) struct Room {
    pub own: Buffers,
    other: Buffers,
}

#[derive(Default)]
pub(super) struct Buffers {
    pub data: AlignedBuf,
    pub scratch: AlignedBuf,
}

/// What was found of a matrix.
#[derive(Debug)]
pub(super) struct Measured {
    pub dtype: Dtype,
    pub moments: Moments,
    /// XXH3-128 of the bytes as stored, those of the scales behind them.
    pub digest: u128,
    /// Values that are NaN or infinite, or scales that are no scales: the tensor and what is wrong.
    pub broken: Option<(String, String)>,
    /// Smallest and largest scale.
    pub scales: Option<(f32, f32)>,
    pub error: Option<ErrorStats>,
}

/// How values are stored.
enum Form {
    Wide(Float),
    Codes { grid: Grid, scales: Vec<f32>, companion: u32 },
}

/// A tensor that is being read.
struct Reader<'a> {
    sources: Sources<'a>,
    catalog: &'a Catalog,
    tensor: u32,
    rows: u64,
    cols: u64,
    form: Form,
    /// The first scale that is none.
    bad_scale: Option<String>,
    /// The scales as stored.
    scale_bytes: Vec<u8>,
}

/// Measures a matrix; with `--against` its distance from its counterpart too.
pub(super) fn measure(context: &Context, tensor: u32, room: &mut Room) -> Result<Measured> {
    let name = &context.catalog.tensor(tensor).name;
    let reader = Reader::open(context, context.catalog, tensor, &mut room.own)?;
    let other = match context.options.against {
        None => None,
        Some(catalog) => Some(counterpart(context, catalog, &reader, name, &mut room.other)?),
    };
    let level = context.options.level;
    let dtype = context.catalog.tensor(tensor).dtype;
    let mut hash = Xxh3::default();
    let mut found = Moments::default();
    let mut error = other.is_some().then(ErrorStats::default);
    let bad_scale = reader.bad_scale.as_ref().map(|what| (reader.companion_name(), what.clone()));
    let mut broken = bad_scale;
    let step = (WINDOW / reader.cols.max(1) / QUANTUM * QUANTUM).max(QUANTUM);
    for first in (0..reader.rows).step_by(step as usize) {
        if context.progress.stopped() {
            return Err(Error::cancelled());
        }
        let rows = first..reader.rows.min(first + step);
        let bytes = reader.read(&rows, &mut room.own)?;
        hash.update(bytes);
        let count = (rows.end - rows.start) as usize;
        let part = match &reader.form {
            Form::Wide(float) => moments(level, bytes, *float),
            Form::Codes { scales, .. } if scales.is_empty() => continue,
            Form::Codes { grid, scales, .. } => {
                let tile = Tile::packed(bytes, count, reader.cols as usize, 1);
                moments_of_codes(level, &tile, *grid, reader.scales_of(*grid, scales, &rows))
            }
        };
        found.merge(&part);
        if broken.is_none() && !part.is_finite() {
            broken = Some((name.to_string(), not_finite(bytes, dtype, first * reader.cols)));
        }
        if let (Some(other), Some(error)) = (&other, &mut error) {
            let theirs = other.read(&rows, &mut room.other)?;
            for stripe in distance(context, (&reader, bytes), (other, theirs), &rows) {
                error.merge(&stripe);
            }
        }
    }
    hash.update(&reader.scale_bytes);
    let (digest, scales) = (hash.digest(), reader.range_of_scales());
    Ok(Measured { dtype, moments: found, digest, broken, scales, error })
}

fn not_finite(bytes: &[u8], dtype: Dtype, before: u64) -> String {
    match scan(bytes, dtype).non_finite {
        Some(at) => format!("NaN or infinity at element {}", before + at),
        None => "values beyond the range of F32".into(),
    }
}

/// The same tensor of the other checkpoint, in the other kind of number format.
fn counterpart<'a>(
    context: &Context<'a>,
    catalog: &'a Catalog,
    own: &Reader,
    name: &str,
    buffers: &mut Buffers,
) -> Result<Reader<'a>> {
    let root = || catalog.root.path().to_owned();
    let tensor = catalog
        .find(name)
        .ok_or_else(|| Error::invalid("in no file of the other checkpoint").at(root()))?;
    let shape = &catalog.tensor(tensor).shape;
    if **shape != [own.rows, own.cols] {
        let here = [own.rows, own.cols];
        return Err(
            Error::invalid(format!("{here:?} here, {shape:?} there")).at(catalog.path_of(tensor))
        );
    }
    let other = Reader::open(context, catalog, tensor, buffers)?;
    match (&own.form, &other.form) {
        (Form::Wide(_), Form::Codes { .. }) | (Form::Codes { .. }, Form::Wide(_)) => Ok(other),
        _ => Err(Error::impossible("both checkpoints have the same kind of number format")
            .at(root())
            .hint(
                "--against takes the BF16 original of an FP8 checkpoint, or the other way round",
            )),
    }
}

/// Error of the codes against the wide values, a stripe at a time.
fn distance(
    context: &Context,
    own: (&Reader, &[u8]),
    other: (&Reader, &[u8]),
    rows: &Range<u64>,
) -> Vec<ErrorStats> {
    let (wide, coded) = match own.0.form {
        Form::Wide(_) => (own, other),
        Form::Codes { .. } => (other, own),
    };
    let (Form::Wide(float), Form::Codes { grid, scales, .. }) = (&wide.0.form, &coded.0.form)
    else {
        return Vec::new();
    };
    if scales.is_empty() {
        return Vec::new();
    }
    let (count, cols) = ((rows.end - rows.start) as usize, wide.0.cols as usize);
    let tile = Tile::packed(wide.1, count, cols, float.bytes());
    let scales = coded.0.scales_of(*grid, scales, rows);
    measure_error(context.options.level, &tile, *float, *grid, coded.1, scales)
}

impl<'a> Reader<'a> {
    fn open(
        context: &Context<'a>,
        catalog: &'a Catalog,
        tensor: u32,
        buffers: &mut Buffers,
    ) -> Result<Self> {
        let info = catalog.tensor(tensor);
        let [rows, cols] = *info.shape else {
            return Err(Error::impossible(format!("an expert of shape {:?}", info.shape))
                .hint("one matrix an expert is needed, as checkpoints are published"));
        };
        if cols > MAX_COLS {
            return Err(Error::impossible(format!("rows of more than {MAX_COLS} elements")));
        }
        let coded = info.dtype == Dtype::F8E4M3;
        let companion = if coded { Some(companion_of(catalog, info)?) } else { None };
        let tensors = once(tensor).chain(companion.as_ref().map(|(index, _)| *index));
        let sources = Sources::of_tensors(catalog, tensors, context.options.io, context.progress)?;
        let form = match (float_of(info.dtype), companion) {
            (Some(float), _) => Form::Wide(float),
            (None, Some((companion, grid))) => Form::Codes { grid, scales: Vec::new(), companion },
            (None, None) => {
                return Err(Error::impossible(format!("values of {} are not known", info.dtype)));
            }
        };
        let mut reader = Self {
            sources,
            catalog,
            tensor,
            rows,
            cols,
            form,
            bad_scale: None,
            scale_bytes: Vec::new(),
        };
        reader.load_scales(buffers)?;
        Ok(reader)
    }

    fn load_scales(&mut self, buffers: &mut Buffers) -> Result<()> {
        let Form::Codes { companion, scales, .. } = &mut self.form else { return Ok(()) };
        let info = self.catalog.tensor(*companion);
        let length = info.bytes as usize;
        let Buffers { data, scratch } = buffers;
        let range = self.sources.read(*companion, 0, length, data, scratch)?;
        self.scale_bytes = data.bytes()[range].to_vec();
        let Some(dtype) = scale_dtype_of(info.dtype) else { return Ok(()) };
        match load_scales(&self.scale_bytes, dtype) {
            Ok(loaded) => *scales = loaded,
            Err(bad) => {
                let what = format!("scale {} is {}", bad.index, bad.value);
                self.bad_scale = Some(what + "; a scale is positive and finite");
            }
        }
        Ok(())
    }

    fn read<'b>(&self, rows: &Range<u64>, buffers: &'b mut Buffers) -> Result<&'b [u8]> {
        let unit = self.catalog.tensor(self.tensor).dtype.bits() / 8;
        let row = self.cols * unit;
        let length = (rows.end - rows.start) * row;
        let Buffers { data, scratch } = buffers;
        let start = rows.start * row;
        let range = self.sources.read(self.tensor, start, length as usize, data, scratch)?;
        Ok(&data.bytes()[range])
    }

    /// The scales of `rows`, which begin on a block boundary.
    fn scales_of<'s>(&self, grid: Grid, scales: &'s [f32], rows: &Range<u64>) -> &'s [f32] {
        let shape = |rows: u64| grid.scale_shape(rows as usize, self.cols as usize);
        let (before, wide) = shape(rows.start);
        let (count, _) = shape(rows.end - rows.start);
        &scales[before * wide..(before + count) * wide]
    }

    fn companion_name(&self) -> String {
        match self.form {
            Form::Codes { companion, .. } => self.catalog.tensor(companion).name.to_string(),
            Form::Wide(_) => String::new(),
        }
    }

    fn range_of_scales(&self) -> Option<(f32, f32)> {
        let Form::Codes { scales, .. } = &self.form else { return None };
        let first = *scales.first()?;
        Some(scales.iter().fold((first, first), |(low, high), s| (low.min(*s), high.max(*s))))
    }
}

/// The scales of an FP8 tensor: their tensor and grid.
fn companion_of(catalog: &Catalog, tensor: &Tensor) -> Result<(u32, Grid)> {
    let lookup = |name: &str| {
        let found = catalog.tensor(catalog.find(name)?);
        Some((found.dtype, &*found.shape))
    };
    let damaged = |what: String| {
        Error::invalid(what).hint("the download is damaged: check it with `lingconv verify`")
    };
    let found = companion::find(&tensor.name, &tensor.shape, lookup).map_err(damaged)?;
    let index = catalog.find(&found.name).ok_or_else(|| damaged("no scale".into()))?;
    if catalog.tensor(index).bytes > MAX_SCALES {
        return Err(damaged(format!("scales of more than {MAX_SCALES} bytes")));
    }
    Ok((index, found.grid))
}
