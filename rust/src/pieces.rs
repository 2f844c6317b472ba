//! Tensors that lie in pieces: a checkpoint that was cut for ranks, read as the one it was made of.
//!
//! A [`Catalog`](crate::catalog::Catalog) with pieces describes the original shards and tensors,
//! none of which exist as files; every read is put together from the files that do. Planners need
//! not know: they see tensors, the executor's sources see pieces.

use std::ops::Range;

use crate::io::Stamp;

/// A file that holds pieces.
#[derive(Debug, Clone)]
pub struct PieceFile {
    /// Path relative to the folder.
    pub name: String,
    /// Size and times when its header was read.
    pub stamp: Stamp,
}

/// How the bytes of a piece are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// As they are.
    Plain,
    /// BF16 as F32; the low halves are zero.
    WidenedBf16,
}

impl Stored {
    /// Stored bytes for a byte of the tensor.
    pub fn factor(self) -> u64 {
        match self {
            Self::Plain => 1,
            Self::WidenedBf16 => 2,
        }
    }
}

/// A rectangle of a tensor, stored row by row without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// File that holds it.
    pub file: u32,
    /// First byte in that file.
    pub offset: u64,
    /// Rows of the tensor.
    pub rows: Range<u64>,
    /// Bytes of each of these rows.
    pub bytes: Range<u64>,
    /// How its bytes are stored.
    pub stored: Stored,
    /// Whether an earlier piece holds the same: it is compared, not assumed to be equal.
    pub copy: bool,
}

/// What of a piece a read needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub length: u64,
    /// Place of the first byte in the tensor.
    pub start: u64,
    /// Bytes of a row of the piece, and from one row of the tensor to the next.
    pub row: (u64, u64),
}

/// The pieces of one tensor.
#[derive(Debug, Clone, Default)]
pub struct InPieces {
    /// Bytes of a row of the tensor.
    pub row_bytes: u64,
    /// Pieces that together cover it, and copies of them.
    pub pieces: Vec<Piece>,
}

/// Pieces of all tensors of a catalog.
#[derive(Debug, Default)]
pub struct Pieces {
    /// Files that hold them.
    pub files: Vec<PieceFile>,
    /// Pieces by tensor.
    pub tensors: Vec<InPieces>,
    /// What it was cut for, in words.
    pub layout: String,
    /// What the original had and these files do not, a line each.
    pub lost: Vec<String>,
    /// The map of experts that these files follow, where their order is not the original's.
    pub experts: Option<String>,
}

impl InPieces {
    /// What must be read of `piece` for the bytes `wanted` of the tensor: the rows it touches,
    /// or, where rows follow one another without a gap, exactly those bytes.
    pub fn span(&self, piece: &Piece, wanted: &Range<u64>) -> Option<Span> {
        let (row, width) = (self.row_bytes, piece.bytes.end - piece.bytes.start);
        let factor = piece.stored.factor();
        if width == row {
            let (first, end) = (piece.rows.start * row, piece.rows.end * row);
            let bytes = wanted.start.max(first)..wanted.end.min(end);
            return (bytes.start < bytes.end).then(|| Span {
                offset: piece.offset + (bytes.start - first) * factor,
                length: (bytes.end - bytes.start) * factor,
                start: bytes.start,
                row: (bytes.end - bytes.start, bytes.end - bytes.start),
            });
        }
        let touched = wanted.start / row..wanted.end.div_ceil(row);
        let rows = touched.start.max(piece.rows.start)..touched.end.min(piece.rows.end);
        (rows.start < rows.end).then(|| Span {
            offset: piece.offset + (rows.start - piece.rows.start) * width * factor,
            length: (rows.end - rows.start) * width * factor,
            start: rows.start * row + piece.bytes.start,
            row: (width, row),
        })
    }

    /// Whether the pieces that are no copies cover `rows` rows, each byte once.
    pub fn covers(&self, rows: u64) -> bool {
        let own = || self.pieces.iter().filter(|p| !p.copy);
        let area: u64 =
            own().map(|p| (p.rows.end - p.rows.start) * (p.bytes.end - p.bytes.start)).sum();
        let inside = own().all(|p| p.rows.end <= rows && p.bytes.end <= self.row_bytes);
        area == rows * self.row_bytes && inside
    }

    /// Adds a piece; it is a copy if earlier ones hold all of it.
    pub fn add(&mut self, mut piece: Piece) {
        let overlaps = |p: &Piece| {
            !p.copy
                && p.rows.start < piece.rows.end
                && piece.rows.start < p.rows.end
                && p.bytes.start < piece.bytes.end
                && piece.bytes.start < p.bytes.end
        };
        // Copies follow closely, so the search begins at the end.
        piece.copy = self.pieces.iter().rev().any(overlaps);
        self.pieces.push(piece);
    }
}

impl Span {
    /// For each row of the piece that lies in `wanted`: its bytes there, counted from the start of
    /// `wanted`, and its first byte in the span.
    pub fn rows(
        &self,
        wanted: &Range<u64>,
        factor: u64,
    ) -> impl Iterator<Item = (Range<usize>, usize)> {
        let (width, stride) = self.row;
        let count = self.length / factor / width.max(1);
        let (start, wanted) = (self.start, wanted.clone());
        (0..count).filter_map(move |row| {
            let at = start + row * stride;
            let bytes = at.max(wanted.start)..(at + width).min(wanted.end);
            (bytes.start < bytes.end).then(|| {
                let inside =
                    (bytes.start - wanted.start) as usize..(bytes.end - wanted.start) as usize;
                (inside, (row * width + bytes.start - at) as usize)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(rows: Range<u64>, bytes: Range<u64>, offset: u64) -> Piece {
        Piece { file: 0, offset, rows, bytes, stored: Stored::Plain, copy: false }
    }

    /// Every byte of a 6 × 10 tensor is its own number, cut into columns, rows and a copy.
    #[test]
    fn any_range_is_put_together_from_its_pieces() {
        let (rows, row_bytes) = (6u64, 10u64);
        let tensor: Vec<u8> = (0..60).collect();
        let cuts = [(0..4, 0..3), (0..4, 3..10), (4..6, 0..10), (1..2, 0..10)];
        let mut held = InPieces { row_bytes, pieces: Vec::new() };
        let mut file = Vec::new();
        for (r, c) in cuts {
            held.add(piece(r.clone(), c.clone(), file.len() as u64));
            for row in r {
                file.extend(
                    &tensor
                        [(row * row_bytes + c.start) as usize..(row * row_bytes + c.end) as usize],
                );
            }
        }
        assert!(held.covers(rows));
        assert_eq!(held.pieces.iter().filter(|p| p.copy).count(), 1);
        for start in 0..60u64 {
            for end in start + 1..=60 {
                let wanted = start..end;
                for copies in [false, true] {
                    let mut found = tensor[start as usize..end as usize].to_vec();
                    if !copies {
                        found.fill(255);
                    }
                    for p in held.pieces.iter().filter(|p| p.copy == copies) {
                        let Some(span) = held.span(p, &wanted) else { continue };
                        let read =
                            &file[span.offset as usize..(span.offset + span.length) as usize];
                        for (to, from) in span.rows(&wanted, 1) {
                            let length = to.len();
                            found[to].copy_from_slice(&read[from..from + length]);
                        }
                    }
                    assert_eq!(found, tensor[start as usize..end as usize], "{wanted:?}");
                }
            }
        }
    }

    #[test]
    fn holes_are_noticed() {
        let mut held = InPieces { row_bytes: 10, pieces: Vec::new() };
        held.add(piece(0..4, 0..5, 0));
        assert!(!held.covers(4));
        held.add(piece(0..4, 5..10, 20));
        assert!(held.covers(4) && !held.covers(5));
    }
}
