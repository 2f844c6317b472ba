//! Error figures of encoded tensors as people and manifests read them.

use serde::Serialize;

use crate::numeric::ErrorStats;

/// How well a tensor survived encoding.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Figures {
    /// Signal to quantisation noise in dB; `None` where nothing was lost.
    pub sqnr_db: Option<f64>,
    /// Largest absolute difference.
    pub max_abs_error: f64,
    /// Cosine of the angle between weights and decoded weights.
    pub cosine: f64,
    /// Share of elements at ±448.
    pub saturated: f64,
    /// Share of elements that became 0.
    pub underflowed: f64,
    /// Blocks of zeros.
    pub zero_blocks: u64,
    /// Elements.
    pub elements: u64,
}

impl From<&ErrorStats> for Figures {
    fn from(stats: &ErrorStats) -> Self {
        let sqnr = stats.sqnr_db();
        Self {
            sqnr_db: sqnr.is_finite().then_some(sqnr),
            max_abs_error: stats.max_abs_error,
            cosine: stats.cosine(),
            saturated: stats.saturated_share(),
            underflowed: stats.underflowed_share(),
            zero_blocks: stats.zero_blocks,
            elements: stats.elements,
        }
    }
}
