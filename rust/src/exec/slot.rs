//! A slot of the ring: reads one window and transforms it into pieces for the outputs.

use std::ops::Range;

use super::window::Window;
use crate::catalog::Catalog;
use crate::error::{Error, Kind, Result};
use crate::exec::sources::Sources;
use crate::io::{AlignedBuf, PAGE};
use crate::numeric::{
    self, Encoding, ErrorStats, Float, Grid, Level, NonFinite, Scratch, Tile, encode_with_scales,
    store_scales,
};
use crate::plan::{Step, Target, Task};
use crate::transform::{Op, grid_steps};

/// Where the bytes of a [`Piece`] lie.
#[derive(Debug)]
pub(super) enum Place {
    /// In the slot's input: copied as read.
    Input(Range<usize>),
    /// In the slot's output.
    Output(Range<usize>),
    /// On their own: scales that waited for their turn.
    Owned(Vec<u8>),
}

/// Bytes that come next in an output.
#[derive(Debug)]
pub(super) struct Piece {
    pub output: u32,
    pub place: Place,
}

/// Scales that belong behind the tensor that is being written.
#[derive(Debug)]
pub(super) struct Deferred {
    pub output: u32,
    pub tensor: u32,
    pub bytes: Vec<u8>,
}

/// Buffers of one window and what was made of it.
#[derive(Default)]
pub(super) struct Slot {
    input: AlignedBuf,
    /// File and offset that the input was read from, and where it lies.
    origin: Option<(u32, u64, Range<usize>)>,
    /// Where the pieces of a tensor pass through.
    gather: AlignedBuf,
    output: AlignedBuf,
    used: usize,
    scratch: Scratch,
    pub pieces: Vec<Piece>,
    pub deferred: Vec<Deferred>,
    pub stats: Vec<ErrorStats>,
}

/// What all windows of a run have in common.
#[derive(Clone, Copy)]
pub(super) struct Work<'a> {
    pub catalog: &'a Catalog,
    pub task: &'a Task,
    pub sources: &'a Sources<'a>,
    pub level: Level,
    pub prove: bool,
    pub report: bool,
}

impl Slot {
    /// A slot of pieces that need no buffers.
    pub(super) fn holding(pieces: Vec<Piece>) -> Self {
        Self { pieces, ..Self::default() }
    }

    /// The bytes of a piece.
    pub(super) fn bytes<'s>(&'s self, place: &'s Place) -> &'s [u8] {
        match place {
            Place::Input(range) => &self.input.bytes()[range.clone()],
            Place::Output(range) => &self.output.bytes()[range.clone()],
            Place::Owned(bytes) => bytes,
        }
    }

    /// The bytes that were read, with their file and offset.
    pub(super) fn source(&self) -> Option<(u32, u64, &[u8])> {
        let (file, offset, range) = self.origin.clone()?;
        Some((file, offset, &self.input.bytes()[range]))
    }

    /// Reads and transforms `window`.
    pub(super) fn process(&mut self, work: &Work, window: &Window) -> Result<()> {
        self.pieces.clear();
        self.deferred.clear();
        self.stats.clear();
        self.used = 0;
        let step = &work.task.steps[window.step];
        let unit = step.op.source_unit();
        let width = window.cols.end - window.cols.start;
        let length = (window.rows.end - window.rows.start) * width * unit;
        let start = (window.rows.start * step.cols + window.cols.start) * unit;
        let (input, gather) = (&mut self.input, &mut self.gather);
        let read = work.sources.read(step.source, start, length as usize, input, gather)?;
        let info = work.catalog.tensor(step.source);
        self.origin = Some((info.shard, info.offset + start, read.clone()));
        self.output.reserve(result_bytes(step, window))?;
        for target in &step.targets {
            let rows = overlap(&window.rows, &target.rows);
            let cols = overlap(&window.cols, &target.cols);
            if !rows.is_empty() && !cols.is_empty() {
                let part = Part { step, target, rows, cols, window, read: read.clone() };
                self.transform(work, &part)?;
            }
        }
        Ok(())
    }

    fn transform(&mut self, work: &Work, part: &Part) -> Result<()> {
        match part.step.op {
            Op::Copy { .. } => self.copy(part),
            Op::Widen { float } => self.widen(part, float),
            Op::Encode { float, encoding } => self.encode(work, part, float, &encoding)?,
            Op::Decode { grid, .. } => self.decode(work, part, grid)?,
        }
        Ok(())
    }

    /// Takes `length` bytes of the output buffer, page-aligned so that they can be written as they lie.
    fn take(&mut self, length: usize) -> Range<usize> {
        let start = self.used.next_multiple_of(PAGE as usize);
        self.used = start + length;
        start..self.used
    }

    fn copy(&mut self, part: &Part) {
        let output = part.target.output;
        let range = part.source_range();
        if part.is_contiguous() {
            self.pieces.push(Piece { output, place: Place::Input(range) });
            return;
        }
        let (width, stride) = (part.source_width(), part.stride());
        let taken = self.take(width * part.row_count());
        let rows = self.output.bytes_mut()[taken.clone()].chunks_exact_mut(width);
        let source = &self.input.bytes()[range];
        for (row, to) in rows.enumerate() {
            to.copy_from_slice(&source[row * stride..][..width]);
        }
        self.pieces.push(Piece { output, place: Place::Output(taken) });
    }

    fn widen(&mut self, part: &Part, float: Float) {
        let taken = self.take(part.row_count() * part.col_count() * size_of::<f32>());
        let tile = part.tile(self.input.bytes());
        let out = self.output.bytes_mut()[taken.clone()].as_chunks_mut().0;
        let elements = (0..tile.rows).flat_map(|row| {
            let row = &tile.bytes[row * tile.stride..][..tile.cols * float.bytes()];
            row.chunks_exact(float.bytes())
        });
        for (element, out) in elements.zip(out) {
            *out = float.read(element).to_le_bytes();
        }
        self.pieces.push(Piece { output: part.target.output, place: Place::Output(taken) });
    }

    fn encode(
        &mut self,
        work: &Work,
        part: &Part,
        float: Float,
        encoding: &Encoding,
    ) -> Result<()> {
        let (rows, cols) = (part.row_count(), part.col_count());
        let (high, wide) = encoding.grid.scale_shape(rows, cols);
        let taken = self.take(rows * cols);
        let tile = part.tile(self.input.bytes());
        let codes = &mut self.output.bytes_mut()[taken.clone()];
        let scales = if let Some(row) = &part.window.row_of_scales {
            let scales = part.blocks(encoding.grid, row, 0);
            let (grid, quotient) = (encoding.grid, encoding.quotient);
            encode_with_scales(work.level, &tile, float, grid, quotient, &scales, codes);
            scales
        } else {
            let mut scales = vec![0f32; high * wide];
            numeric::encode(work.level, &tile, float, encoding, codes, &mut scales)
                .map_err(|e| non_finite(work, part.step, &e, (part.rows.start, part.cols.start)))?;
            scales
        };
        if work.report {
            let stats = numeric::measure(work.level, &tile, float, encoding.grid, codes, &scales);
            self.stats.extend(stats);
        }
        if work.prove {
            let codes = Tile::packed(codes, rows, cols, 1);
            numeric::prove(work.level, &codes, float, encoding, &scales, &mut self.scratch)
                .map_err(|e| {
                    of_source(work, part.step, Error::new(Kind::Check, format!("--prove: {e}")))
                })?;
        }
        let Target { output, scale, .. } = *part.target;
        self.pieces.push(Piece { output, place: Place::Output(taken) });
        if let Some(tensor) = scale.filter(|_| part.brings_scales(encoding.grid)) {
            let mut bytes = Vec::new();
            store_scales(&scales, encoding.rule.stored, &mut bytes);
            self.deferred.push(Deferred { output, tensor, bytes });
        }
        Ok(())
    }

    fn decode(&mut self, work: &Work, part: &Part, grid: Grid) -> Result<()> {
        let all = part
            .window
            .scales
            .as_ref()
            .ok_or_else(|| Error::internal("a decode step without scales"))?;
        let scales = part.scales(grid, all);
        let taken = self.take(part.row_count() * part.col_count() * 2);
        let tile = part.tile(self.input.bytes());
        let out = &mut self.output.bytes_mut()[taken.clone()];
        numeric::decode(work.level, &tile, grid, &scales, out);
        self.pieces.push(Piece { output: part.target.output, place: Place::Output(taken) });
        Ok(())
    }
}

/// One target's share of a window.
struct Part<'a> {
    step: &'a Step,
    target: &'a Target,
    /// Rows of the step's matrix.
    rows: Range<u64>,
    /// Columns of the step's matrix.
    cols: Range<u64>,
    window: &'a Window,
    /// Where the window lies in the input buffer.
    read: Range<usize>,
}

impl Part<'_> {
    fn row_count(&self) -> usize {
        (self.rows.end - self.rows.start) as usize
    }

    fn col_count(&self) -> usize {
        (self.cols.end - self.cols.start) as usize
    }

    /// Whether it lies in the window without gaps between its rows.
    fn is_contiguous(&self) -> bool {
        self.cols == self.window.cols || self.rows.end - self.rows.start == 1
    }

    /// Bytes of a row of the window.
    fn stride(&self) -> usize {
        let window = &self.window.cols;
        (window.end - window.start) as usize * self.step.op.source_unit() as usize
    }

    /// Bytes of this part's share of a row of the source.
    fn source_width(&self) -> usize {
        self.col_count() * self.step.op.source_unit() as usize
    }

    /// From the first to the last byte of this part in the input buffer.
    fn source_range(&self) -> Range<usize> {
        let lead = (self.cols.start - self.window.cols.start) as usize
            * self.step.op.source_unit() as usize;
        let row = (self.rows.start - self.window.rows.start) as usize;
        let start = self.read.start + row * self.stride() + lead;
        start..start + (self.row_count() - 1) * self.stride() + self.source_width()
    }

    fn tile<'b>(&self, input: &'b [u8]) -> Tile<'b> {
        Tile {
            bytes: &input[self.source_range()],
            rows: self.row_count(),
            cols: self.col_count(),
            stride: self.stride(),
        }
    }

    /// The part of the step's scales that this part needs.
    fn scales(&self, grid: Grid, all: &[f32]) -> Vec<f32> {
        let (high, _) = grid_steps(grid);
        self.blocks(grid, all, (self.rows.start / high) as usize)
    }

    /// The part of `scales` that this part needs, from their row `first` on.
    fn blocks(&self, grid: Grid, scales: &[f32], first: usize) -> Vec<f32> {
        let col = self.cols.start.checked_div(grid_steps(grid).1).unwrap_or(0) as usize;
        let (_, stride) = grid.scale_shape(1, self.step.cols as usize);
        let (high, wide) = grid.scale_shape(self.row_count(), self.col_count());
        let rows = first..first + high;
        rows.flat_map(|r| &scales[r * stride + col..][..wide]).copied().collect()
    }

    /// Whether scales come with it: those of a strip have come with the first of their blocks' rows.
    fn brings_scales(&self, grid: Grid) -> bool {
        let (high, wide) = grid_steps(grid);
        let begins = wide != 0 || self.cols.start == self.target.cols.start;
        self.window.row_of_scales.is_none() || begins && self.rows.start.is_multiple_of(high)
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> Range<u64> {
    one.start.max(other.start)..one.end.min(other.end)
}

/// Upper bound of the output buffer for a window, page padding included.
fn result_bytes(step: &Step, window: &Window) -> usize {
    let unit = step.op.result_unit();
    let of_target = |t: &Target| {
        let (rows, cols) = (overlap(&window.rows, &t.rows), overlap(&window.cols, &t.cols));
        let copied_as_read = step.op.is_copy() && cols == window.cols;
        if rows.is_empty() || cols.is_empty() || copied_as_read {
            return 0;
        }
        (rows.end - rows.start) * (cols.end - cols.start) * unit + PAGE
    };
    step.targets.iter().map(of_target).sum::<u64>() as usize
}

/// A value that is not finite in what begins at `first` of a step's matrix.
pub(super) fn non_finite(work: &Work, step: &Step, found: &NonFinite, first: (u64, u64)) -> Error {
    let (row, col) = (first.0 + found.row as u64, first.1 + found.col as u64);
    let message = format!("non-finite value {} at [{row}, {col}]", found.value);
    of_source(work, step, Error::new(Kind::NonFinite, message)).hint(
        "check the download with `lingconv verify`; --nonfinite keep leaves such a tensor unquantised",
    )
}

fn of_source(work: &Work, step: &Step, error: Error) -> Error {
    let source = step.source;
    error.tensor(&*work.catalog.tensor(source).name).at(work.catalog.path_of(source))
}
