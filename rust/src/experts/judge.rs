//! What is unsound. Experts are held against the others of their layer, by median and by median
//! distance from it, which a few bad ones cannot move.

use std::collections::{BTreeMap, HashMap};

use super::report::{Finding, FindingKind, Raw};
use super::router::Rows;
use super::weight::Measured;
use crate::catalog::Catalog;
use crate::exec::hash::Digest128;

/// An outlier is more spreads away from the median than this …
const SPREADS: f64 = 6.0;
/// … and its values are more times larger or smaller than the median's. In sound models they differ
/// by a factor of two or so.
const FACTOR: f64 = 4.0;
/// … or the likeness of its gate row to the others is further from the median.
const COSINE: f64 = 0.1;
/// A normal distribution's standard deviation in median distances.
const SIGMA: f64 = 1.4826;

/// All findings, by layer and expert.
pub(super) fn findings(catalog: &Catalog, layers: &BTreeMap<u32, Raw>) -> Vec<Finding> {
    let mut all = Findings { catalog, found: Vec::new() };
    let mut seen: HashMap<Digest128, u32> = HashMap::new();
    for (&layer, raw) in layers {
        for role in raw.roles() {
            all.of_projection(layer, &raw.of_role(role).collect::<Vec<_>>(), &mut seen);
        }
        if let Some((tensor, rows)) = &raw.router {
            all.of_router(layer, *tensor, rows);
        }
        if let Some((tensor, values)) = &raw.bias {
            for (value, expert) in values.iter().zip(0..).filter(|(v, _)| !v.is_finite()) {
                let message = format!("the router bias of this expert is {value}");
                all.add(FindingKind::Nonfinite, (layer, expert), *tensor, message);
            }
        }
    }
    let mut found = all.found;
    found.sort_by(|a, b| {
        (a.layer, a.expert, a.kind, &a.tensor).cmp(&(b.layer, b.expert, b.kind, &b.tensor))
    });
    found
}

struct Findings<'a> {
    catalog: &'a Catalog,
    found: Vec<Finding>,
}

impl Findings<'_> {
    fn add(
        &mut self,
        kind: FindingKind,
        (layer, expert): (u32, u32),
        tensor: u32,
        message: String,
    ) {
        let tensor = self.catalog.tensor(tensor).name.to_string();
        self.found.push(Finding { kind, layer, expert, tensor, message });
    }

    /// One projection of all experts of a layer.
    fn of_projection(
        &mut self,
        layer: u32,
        experts: &[(u32, u32, &Measured)],
        seen: &mut HashMap<Digest128, u32>,
    ) {
        let mut sizes = Vec::new();
        for &(expert, tensor, measured) in experts {
            let at = (layer, expert);
            if let Some((name, message)) = &measured.broken {
                let (tensor, message) = (name.clone(), message.clone());
                let kind = FindingKind::Nonfinite;
                self.found.push(Finding { kind, layer, expert, tensor, message });
                continue;
            }
            if measured.moments.largest == 0.0 {
                let message = format!("all {} values are zero", measured.moments.elements);
                self.add(FindingKind::Zero, at, tensor, message);
                continue;
            }
            let first = *seen.entry(measured.digest).or_insert(tensor);
            if first != tensor {
                let message = format!("the same bytes as {}", self.catalog.tensor(first).name);
                self.add(FindingKind::Duplicate, at, tensor, message);
            }
            sizes.push((expert, tensor, measured.moments.rms().ln()));
        }
        let logs: Vec<f64> = sizes.iter().map(|s| s.2).collect();
        let middle = median(&logs);
        for (i, distance) in outliers(&logs, FACTOR.ln()) {
            let (expert, tensor, log) = sizes[i];
            let (factor, than) = if distance > 0.0 {
                (distance.exp(), "larger")
            } else {
                ((-distance).exp(), "smaller")
            };
            let message = format!(
                "RMS {:.3e}, {factor:.3} times {than} than the layer's median {:.3e}",
                log.exp(),
                middle.exp()
            );
            self.add(FindingKind::Outlier, (layer, expert), tensor, message);
        }
    }

    fn of_router(&mut self, layer: u32, tensor: u32, rows: &Rows) {
        for &expert in &rows.broken {
            let message = "NaN or infinity in the gate row of this expert".into();
            self.add(FindingKind::Nonfinite, (layer, expert), tensor, message);
        }
        let zero = |e: usize| rows.norms.get(e) == Some(&0.0);
        for (expert, first) in rows.twins.iter().enumerate() {
            let at = (layer, expert as u32);
            if zero(expert) {
                self.add(FindingKind::GateRow, at, tensor, "a gate row of zeros".into());
            } else if let Some(first) = first {
                let message = format!("the same gate row as expert {first}");
                self.add(FindingKind::GateRow, at, tensor, message);
            }
        }
        // Unrelated rows have a likeness of this spread, however near to another a few of them are.
        let count = rows.likeness.len().max(2) as f64;
        let chance = 1.0 / (rows.cols.max(1) as f64 * (count - 1.0)).sqrt();
        for (expert, distance) in outliers(&rows.likeness, COSINE.max(SPREADS * chance)) {
            if !zero(expert) {
                let cosine = rows.likeness[expert];
                let message = format!(
                    "mean cosine {cosine:.3} to the other gate rows, columns at equal size; the \
                     layer's median is {:.3}",
                    cosine - distance
                );
                self.add(FindingKind::GateRow, (layer, expert as u32), tensor, message);
            }
        }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n.is_multiple_of(2) => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        n => sorted[n / 2],
    }
}

/// Values that are further from the median than `least` and than [`SPREADS`] spreads, with their
/// distance.
fn outliers(values: &[f64], least: f64) -> Vec<(usize, f64)> {
    let middle = median(values);
    let distances: Vec<f64> = values.iter().map(|v| (v - middle).abs()).collect();
    let limit = least.max(SPREADS * SIGMA * median(&distances));
    let far = values.iter().map(|v| v - middle).enumerate();
    far.filter(|(_, distance)| distance.abs() > limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]).to_bits(), 0f64.to_bits());
        assert_eq!(median(&[3.0, 1.0, 2.0]).to_bits(), 2f64.to_bits());
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]).to_bits(), 2.5f64.to_bits());
    }

    #[test]
    fn outliers_need_distance_and_company() {
        let near = |values: &[f64], least| -> Vec<usize> {
            outliers(values, least).into_iter().map(|o| o.0).collect()
        };
        assert_eq!(near(&[1.0, 1.0, 1.0, 9.0], 2.0), [3]);
        assert!(near(&[1.0, 1.0, 1.0, 2.5], 2.0).is_empty());
        assert!(near(&[1.0, 9.0], 2.0).is_empty());
        assert!(near(&[0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0], 1.0).is_empty());
        assert!(near(&[], 1.0).is_empty());
    }
}
