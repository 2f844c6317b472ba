//! One matrix of an expert: hashed and measured window by window, in one pass over its bytes.

use std::iter::once;
use std::ops::Range;

use super::Context;
use crate::catalog::{Catalog, Tensor};
use crate::companion;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::exec::hash::{Digest128, Xxh3};
use crate::exec::sources::Sources;
use crate::io::AlignedBuf;
use crate::numeric::{
    ErrorStats, Float, Grid, Level, Moments, Tile, load_scales, measure as measure_error, moments,
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
    pub digest: Digest128,
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

/// A matrix, and all that its values need beside its own bytes.
pub(super) struct Matrix<'a> {
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

/// Measures a matrix whose windows arrive in order, whoever reads them.
pub(super) struct Meter<'a> {
    matrix: Matrix<'a>,
    level: Level,
    hash: Xxh3,
    moments: Moments,
    broken: Option<(String, String)>,
    /// First row of the next window.
    next: u64,
}

impl<'a> Meter<'a> {
    pub(super) fn new(matrix: Matrix<'a>, level: Level) -> Self {
        let bad_scale = matrix.bad_scale.as_ref();
        let broken = bad_scale.map(|what| (matrix.companion_name(), what.clone()));
        let (hash, moments) = (Xxh3::default(), Moments::default());
        Self { matrix, level, hash, moments, broken, next: 0 }
    }

    /// Rows of the next window; none at the end.
    pub(super) fn window(&self) -> Range<u64> {
        let step = (WINDOW / self.matrix.cols.max(1) / QUANTUM * QUANTUM).max(QUANTUM);
        self.next..self.matrix.rows.min(self.next + step)
    }

    /// Bytes of the next window.
    pub(super) fn wanted(&self) -> u64 {
        let rows = self.window();
        (rows.end - rows.start) * self.matrix.row_bytes()
    }

    /// Takes the bytes of the next window.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        let (matrix, rows) = (&self.matrix, self.window());
        self.hash.update(bytes);
        self.next = rows.end;
        let part = match &matrix.form {
            Form::Wide(float) => moments(self.level, bytes, *float),
            Form::Codes { scales, .. } if scales.is_empty() => return,
            Form::Codes { grid, scales, .. } => {
                let count = (rows.end - rows.start) as usize;
                let tile = Tile::packed(bytes, count, matrix.cols as usize, 1);
                let scales = matrix.scales_of(*grid, scales, &rows);
                moments_of_codes(self.level, &tile, *grid, scales)
            }
        };
        self.moments.merge(&part);
        if self.broken.is_none() && !part.is_finite() {
            let info = matrix.info();
            let what = not_finite(bytes, info.dtype, rows.start * matrix.cols);
            self.broken = Some((info.name.to_string(), what));
        }
    }

    /// Bytes that were read for the matrix, those of its scales included.
    pub(super) fn bytes(&self) -> u64 {
        self.matrix.info().bytes + self.matrix.scale_bytes.len() as u64
    }

    pub(super) fn finish(mut self) -> Measured {
        self.hash.update(&self.matrix.scale_bytes);
        Measured {
            dtype: self.matrix.info().dtype,
            moments: self.moments,
            digest: self.hash.digest(),
            broken: self.broken,
            scales: self.matrix.range_of_scales(),
            error: None,
        }
    }
}

/// Reads and measures a matrix; with `--against` its distance from its counterpart too.
pub(super) fn measure(context: &Context, tensor: u32, room: &mut Room) -> Result<Measured> {
    let own = Reader::open(context, context.catalog, tensor, &mut room.own)?;
    let other = match context.against {
        None => None,
        Some(catalog) => Some(counterpart(context, catalog, &own.matrix, &mut room.other)?),
    };
    let mut error = other.is_some().then(ErrorStats::default);
    let Reader { sources, matrix } = own;
    let mut meter = Meter::new(matrix, context.level);
    while !meter.window().is_empty() {
        if context.progress.stopped() {
            return Err(Error::cancelled());
        }
        let rows = meter.window();
        let bytes = meter.matrix.read(&sources, &rows, &mut room.own)?;
        if let (Some(Reader { sources, matrix }), Some(error)) = (&other, &mut error) {
            let theirs = matrix.read(sources, &rows, &mut room.other)?;
            for stripe in distance(context, (&meter.matrix, bytes), (matrix, theirs), &rows) {
                error.merge(&stripe);
            }
        }
        meter.take(bytes);
    }
    Ok(Measured { error, ..meter.finish() })
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
    own: &Matrix,
    buffers: &mut Buffers,
) -> Result<Reader<'a>> {
    let root = || catalog.root.path().to_owned();
    let tensor = catalog
        .find(&own.info().name)
        .ok_or_else(|| Error::invalid("in no file of the other checkpoint").at(root()))?;
    let shape = &catalog.tensor(tensor).shape;
    if **shape != [own.rows, own.cols] {
        let here = [own.rows, own.cols];
        return Err(
            Error::invalid(format!("{here:?} here, {shape:?} there")).at(catalog.path_of(tensor))
        );
    }
    let other = Reader::open(context, catalog, tensor, buffers)?;
    match (&own.form, &other.matrix.form) {
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
    own: (&Matrix, &[u8]),
    other: (&Matrix, &[u8]),
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
    measure_error(context.level, &tile, *float, *grid, coded.1, scales)
}

/// A matrix and the files that hold it.
struct Reader<'a> {
    sources: Sources<'a>,
    matrix: Matrix<'a>,
}

impl<'a> Reader<'a> {
    fn open(
        context: &Context<'a>,
        catalog: &'a Catalog,
        tensor: u32,
        buffers: &mut Buffers,
    ) -> Result<Self> {
        let matrix = Matrix::open(context, catalog, tensor, buffers)?;
        let sources = Sources::of_tensors(catalog, once(tensor), context.io, context.progress)?;
        Ok(Self { sources, matrix })
    }
}

impl<'a> Matrix<'a> {
    /// Reads the scales of the matrix, if it has any, and nothing else.
    pub(super) fn open(
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
        let form = match (float_of(info.dtype), companion) {
            (Some(float), _) => Form::Wide(float),
            (None, Some((companion, grid))) => Form::Codes { grid, scales: Vec::new(), companion },
            (None, None) => {
                return Err(Error::impossible(format!("values of {} are not known", info.dtype)));
            }
        };
        let (bad_scale, scale_bytes) = (None, Vec::new());
        let mut matrix = Self { catalog, tensor, rows, cols, form, bad_scale, scale_bytes };
        matrix.load_scales(context, buffers)?;
        Ok(matrix)
    }

    fn load_scales(&mut self, context: &Context, buffers: &mut Buffers) -> Result<()> {
        let Form::Codes { companion, scales, .. } = &mut self.form else { return Ok(()) };
        let (catalog, info) = (self.catalog, self.catalog.tensor(*companion));
        let sources = Sources::of_tensors(catalog, once(*companion), context.io, context.progress)?;
        let Buffers { data, scratch } = buffers;
        let range = sources.read(*companion, 0, info.bytes as usize, data, scratch)?;
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

    fn info(&self) -> &'a Tensor {
        self.catalog.tensor(self.tensor)
    }

    fn row_bytes(&self) -> u64 {
        self.cols * (self.info().dtype.bits() / 8)
    }

    fn read<'b>(
        &self,
        sources: &Sources,
        rows: &Range<u64>,
        buffers: &'b mut Buffers,
    ) -> Result<&'b [u8]> {
        let row = self.row_bytes();
        let (start, length) = (rows.start * row, (rows.end - rows.start) * row);
        let Buffers { data, scratch } = buffers;
        let range = sources.read(self.tensor, start, length as usize, data, scratch)?;
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
