//! The answer, layer by layer; lists have one entry an expert.

use std::collections::BTreeMap;

use serde::Serialize;

use super::router::Rows;
use super::weight::Measured;
use super::{Found, Job, judge};
use crate::catalog::Catalog;
use crate::dtype::Dtype;
use crate::exec::hash::Digest128;
use crate::model::{Model, Role};
use crate::numeric::ErrorStats;

/// Form of the report.
const SCHEMA: &str = "lingconv.experts/1";

/// What the weights of all experts and routers tell.
#[derive(Debug, Serialize)]
pub struct Report {
    schema: &'static str,
    /// Class of the model.
    pub architecture: String,
    /// Routed experts of a layer.
    pub experts: u32,
    /// Bytes read.
    pub bytes: u64,
    /// Layers with experts, MTP layers included, ascending.
    pub layers: Vec<Layer>,
    /// What is unsound, by layer and expert.
    pub findings: Vec<Finding>,
}

/// One layer.
#[derive(Debug, Serialize)]
pub struct Layer {
    /// From 0; MTP layers follow the ordinary ones.
    pub layer: u32,
    /// Whether it is an MTP layer.
    pub mtp: bool,
    /// Gate, up and down.
    pub projections: Vec<Projection>,
    /// Rows that choose experts.
    pub router: Option<Router>,
    /// What is added to their scores for the choice alone.
    pub bias: Option<Bias>,
}

/// One projection of all experts of a layer. An expert has no figures if the checkpoint lacks it,
/// none but a digest if values are not finite.
#[derive(Debug, Serialize)]
pub struct Projection {
    /// Role, such as `expert.gate`.
    pub role: &'static str,
    /// Element types found.
    pub dtypes: Vec<Dtype>,
    /// Root of the mean of x².
    pub rms: Vec<Option<f64>>,
    /// Largest |x|.
    pub absmax: Vec<Option<f64>>,
    /// Mean of x⁴ over the squared mean of x²: 3 for a normal distribution, none for zeros.
    pub kurtosis: Vec<Option<f64>>,
    /// XXH3-128 of the bytes as stored, then those of the scales.
    pub digest: Vec<Option<Digest128>>,
    /// Of FP8.
    pub scales: Option<Scales>,
    /// Of a comparison.
    pub error: Option<Errors>,
}

/// Scales of FP8 tensors.
#[derive(Debug, Serialize)]
pub struct Scales {
    /// Smallest.
    pub smallest: Vec<Option<f64>>,
    /// Largest.
    pub largest: Vec<Option<f64>>,
}

/// Errors of encoding.
#[derive(Debug, Serialize)]
pub struct Errors {
    /// Signal to noise in dB; none without noise.
    pub sqnr_db: Vec<Option<f64>>,
    /// Largest |w - d|.
    pub max_abs_error: Vec<Option<f64>>,
}

/// The router of a layer.
#[derive(Debug, Serialize)]
pub struct Router {
    /// Length of each row.
    pub norms: Vec<f64>,
    /// Mean cosine of each row to all others.
    pub mean_cosine: Vec<f64>,
    /// The same with every column at the same size over experts, so that no few large columns
    /// decide; what gate rows are judged by.
    pub likeness: Vec<f64>,
    /// Expert whose row is closest.
    pub closest: Vec<u32>,
    /// Cosine to that row.
    pub closest_cosine: Vec<f64>,
}

/// The router bias of a layer.
#[derive(Debug, Serialize)]
pub struct Bias {
    /// Mean over experts; updates are meant to leave it where it is.
    pub mean: f64,
    /// Bias less that mean: above 0 where training found an expert under-loaded. No load.
    pub pressure: Vec<f64>,
    /// Never trained with it.
    pub all_zero: bool,
}

/// Something unsound.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// What it is.
    pub kind: FindingKind,
    /// Layer.
    pub layer: u32,
    /// Expert.
    pub expert: u32,
    /// Full name of the tensor.
    pub tensor: String,
    /// The figures.
    pub message: String,
}

/// What can be unsound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// NaN or infinity, or a scale that is none.
    Nonfinite,
    /// A matrix of zeros.
    Zero,
    /// The same bytes as another expert's.
    Duplicate,
    /// Values far larger or smaller than in the other experts of the layer.
    Outlier,
    /// A row of the router that is zero, twice there or unlike the others.
    GateRow,
}

/// What was found of a layer, still by tensor.
#[derive(Default)]
pub(super) struct Raw {
    /// By role and expert.
    pub weights: BTreeMap<(Role, u32), (u32, Measured)>,
    pub router: Option<(u32, Rows)>,
    pub bias: Option<(u32, Vec<f32>)>,
}

impl Report {
    pub(super) fn new(
        model: &Model,
        catalog: &Catalog,
        mut found: Vec<(Job, Found)>,
        bytes: u64,
    ) -> Self {
        found.sort_unstable_by_key(|(job, _)| (job.layer, job.role, job.expert));
        let mut layers: BTreeMap<u32, Raw> = BTreeMap::new();
        for (job, found) in found {
            let raw = layers.entry(job.layer).or_default();
            match found {
                Found::Weight(measured) => {
                    let expert = job.expert.unwrap_or_default();
                    raw.weights.insert((job.role, expert), (job.tensor, measured));
                }
                Found::Router(rows) => raw.router = Some((job.tensor, rows)),
                Found::Bias(values) => raw.bias = Some((job.tensor, values)),
            }
        }
        let findings = judge::findings(catalog, &layers);
        let experts = model.experts();
        let layer = |(layer, raw): (&u32, &Raw)| Layer {
            layer: *layer,
            mtp: model.is_mtp(Some(*layer)),
            projections: raw.projections(experts),
            router: raw.router.as_ref().and_then(|(_, rows)| Router::new(rows)),
            bias: raw.bias.as_ref().and_then(|(_, values)| Bias::new(values)),
        };
        Self {
            schema: SCHEMA,
            architecture: model.architecture().to_owned(),
            experts,
            bytes,
            layers: layers.iter().map(layer).collect(),
            findings,
        }
    }
}

impl Raw {
    /// A projection's matrices by expert.
    pub(super) fn of_role(&self, role: Role) -> impl Iterator<Item = (u32, u32, &Measured)> {
        let all = self.weights.range((role, 0)..=(role, u32::MAX));
        all.map(|((_, expert), (tensor, measured))| (*expert, *tensor, measured))
    }

    /// The roles there are.
    pub(super) fn roles(&self) -> Vec<Role> {
        let mut roles: Vec<Role> = self.weights.keys().map(|(role, _)| *role).collect();
        roles.dedup();
        roles
    }

    fn projections(&self, experts: u32) -> Vec<Projection> {
        self.roles().into_iter().map(|role| self.projection(role, experts)).collect()
    }

    fn projection(&self, role: Role, experts: u32) -> Projection {
        let held: BTreeMap<u32, &Measured> =
            self.of_role(role).map(|(expert, _, measured)| (expert, measured)).collect();
        let mut dtypes: Vec<Dtype> = held.values().map(|m| m.dtype).collect();
        dtypes.dedup();
        let of = |figure: &dyn Fn(&Measured) -> Option<f64>| -> Vec<Option<f64>> {
            (0..experts).map(|e| held.get(&e).and_then(|m| figure(m))).collect()
        };
        let sound = |m: &Measured| m.broken.is_none();
        let digest = |e: u32| held.get(&e).map(|m| m.digest);
        let error = |figure: fn(&ErrorStats) -> f64| {
            of(&|m| m.error.as_ref().filter(|_| sound(m)).map(figure).filter(|v| v.is_finite()))
        };
        let any_scales = held.values().any(|m| m.scales.is_some());
        let any_error = held.values().any(|m| m.error.is_some());
        Projection {
            role: role.name(),
            dtypes,
            rms: of(&|m| sound(m).then(|| m.moments.rms())),
            absmax: of(&|m| sound(m).then(|| f64::from(m.moments.largest))),
            kurtosis: of(&|m| m.moments.kurtosis().filter(|_| sound(m))),
            digest: (0..experts).map(digest).collect(),
            scales: any_scales.then(|| Scales {
                smallest: of(&|m| m.scales.map(|(low, _)| f64::from(low))),
                largest: of(&|m| m.scales.map(|(_, high)| f64::from(high))),
            }),
            error: any_error.then(|| Errors {
                sqnr_db: error(ErrorStats::sqnr_db),
                max_abs_error: error(|e| e.max_abs_error),
            }),
        }
    }
}

impl Router {
    fn new(rows: &Rows) -> Option<Self> {
        let known = rows.broken.is_empty() && !rows.norms.is_empty();
        known.then(|| Self {
            norms: rows.norms.clone(),
            mean_cosine: rows.mean_cosine.clone(),
            likeness: rows.likeness.clone(),
            closest: rows.closest.iter().map(|c| c.0).collect(),
            // A single row has no other.
            closest_cosine: rows.closest.iter().map(|c| c.1.max(-1.0)).collect(),
        })
    }
}

impl Bias {
    fn new(values: &[f32]) -> Option<Self> {
        let finite = !values.is_empty() && values.iter().all(|v| v.is_finite());
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len().max(1) as f64;
        finite.then(|| Self {
            mean,
            pressure: values.iter().map(|v| f64::from(*v) - mean).collect(),
            all_zero: values.iter().all(|v| *v == 0.0),
        })
    }
}
