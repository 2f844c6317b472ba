//! A slot of the ring: reads one window and transforms it into pieces for the outputs.

use std::ops::Range;

use super::window::Window;
use crate::catalog::Catalog;
use crate::error::{Error, Kind, Result};
use crate::exec::sources::Sources;
use crate::io::{AlignedBuf, PAGE};
use crate::numeric::{
    self, Encoding, ErrorStats, Float, Grid, Level, NonFinite, Scratch, Tile, store_scales,
};
use crate::plan::{Step, Target, Task};
use crate::transform::Op;

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
        let row_bytes = step.cols * step.op.source_unit();
        let length = (window.rows.end - window.rows.start) * row_bytes;
        let start = window.rows.start * row_bytes;
        let (input, gather) = (&mut self.input, &mut self.gather);
        let read = work.sources.read(step.source, start, length as usize, input, gather)?;
        let info = work.catalog.tensor(step.source);
        self.origin = Some((info.shard, info.offset + start, read.clone()));
        self.output.reserve(result_bytes(step, &window.rows));
        for target in &step.targets {
            let rows =
                window.rows.start.max(target.rows.start)..window.rows.end.min(target.rows.end);
            if rows.start < rows.end && target.cols.start < target.cols.end {
                let part = Part { step, target, rows, window, read: read.clone() };
                self.transform(work, &part)?;
            }
        }
        Ok(())
    }

    fn transform(&mut self, work: &Work, part: &Part) -> Result<()> {
        match part.step.op {
            Op::Copy { .. } => self.copy(part),
            Op::Widen { float } => self.widen(part, float),
            Op::Encode { float, encoding } => {
                self.encode(work, part, float, &encoding).map_err(|e| {
                    let source = part.step.source;
                    e.tensor(&*work.catalog.tensor(source).name).at(work.catalog.path_of(source))
                })?;
            }
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
        if part.is_full_width() {
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
        let Part { target, .. } = part;
        let (rows, cols) = (part.row_count(), part.col_count());
        let (high, wide) = encoding.grid.scale_shape(rows, cols);
        let mut scales = vec![0f32; high * wide];
        let taken = self.take(rows * cols);
        let tile = part.tile(self.input.bytes());
        let codes = &mut self.output.bytes_mut()[taken.clone()];
        numeric::encode(work.level, &tile, float, encoding, codes, &mut scales)
            .map_err(|e| non_finite(&e, part))?;
        if work.report {
            let stats = numeric::measure(work.level, &tile, float, encoding.grid, codes, &scales);
            self.stats.extend(stats);
        }
        if work.prove {
            let codes = Tile::packed(codes, rows, cols, 1);
            numeric::prove(work.level, &codes, float, encoding, &scales, &mut self.scratch)
                .map_err(|e| Error::new(Kind::Check, format!("--prove: {e}")))?;
        }
        self.pieces.push(Piece { output: target.output, place: Place::Output(taken) });
        if let Some(tensor) = target.scale {
            let mut bytes = Vec::new();
            store_scales(&scales, encoding.rule.stored, &mut bytes);
            self.deferred.push(Deferred { output: target.output, tensor, bytes });
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
    window: &'a Window,
    /// Where the window lies in the input buffer.
    read: Range<usize>,
}

impl Part<'_> {
    fn row_count(&self) -> usize {
        (self.rows.end - self.rows.start) as usize
    }

    fn col_count(&self) -> usize {
        (self.target.cols.end - self.target.cols.start) as usize
    }

    fn is_full_width(&self) -> bool {
        self.col_count() as u64 == self.step.cols
    }

    /// Bytes of a row of the source.
    fn stride(&self) -> usize {
        (self.step.cols * self.step.op.source_unit()) as usize
    }

    /// Bytes of this part's share of a row of the source.
    fn source_width(&self) -> usize {
        self.col_count() * self.step.op.source_unit() as usize
    }

    /// From the first to the last byte of this part in the input buffer.
    fn source_range(&self) -> Range<usize> {
        let lead = self.target.cols.start as usize * self.step.op.source_unit() as usize;
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
        let (row, col) = match grid {
            Grid::Block { rows, cols } => {
                (self.rows.start as usize / rows, self.target.cols.start as usize / cols)
            }
            Grid::Channel => (self.rows.start as usize, 0),
        };
        let (_, stride) = grid.scale_shape(self.step.rows as usize, self.step.cols as usize);
        let (high, wide) = grid.scale_shape(self.row_count(), self.col_count());
        (row..row + high).flat_map(|r| &all[r * stride + col..][..wide]).copied().collect()
    }
}

/// Upper bound of the output buffer for a window, page padding included.
fn result_bytes(step: &Step, rows: &Range<u64>) -> usize {
    let unit = step.op.result_unit();
    let of_target = |t: &Target| {
        let overlap = rows.end.min(t.rows.end).saturating_sub(rows.start.max(t.rows.start));
        let width = t.cols.end - t.cols.start;
        let copied_as_read = step.op.is_copy() && width == step.cols;
        if overlap == 0 || copied_as_read { 0 } else { overlap * width * unit + PAGE }
    };
    step.targets.iter().map(of_target).sum::<u64>() as usize
}

fn non_finite(found: &NonFinite, part: &Part) -> Error {
    let row = part.rows.start + found.row as u64;
    let col = part.target.cols.start + found.col as u64;
    Error::new(Kind::NonFinite, format!("non-finite value {} at [{row}, {col}]", found.value)).hint(
        "check the download with `lingconv verify`; --nonfinite keep leaves such a tensor unquantised",
    )
}
