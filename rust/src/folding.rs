//! Names of tensors as people read them: those that differ in numbers alone are one.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;

use serde::Serialize;

use crate::catalog::Tensor;
use crate::dtype::Dtype;

/// Most patterns; no model has so many kinds of names.
const MAX_PATTERNS: usize = 5_000;
/// Most ranges of numbers at one place of a pattern.
const MAX_RUNS: usize = 100;
/// Longest number, in digits.
const MAX_DIGITS: usize = 9;
/// Stands for a number in a template; no name holds it beside other signs between two dots.
const PLACE: &str = "\0";

/// Tensors whose names differ in numbers alone, of one dtype and shape.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Pattern {
    /// The name, with ranges in place of numbers: `layers.{0..3,5}.w`.
    pub name: String,
    /// Number of tensors.
    pub tensors: u64,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Box<[u64]>,
}

/// The names of a checkpoint.
#[derive(Debug, Serialize)]
pub struct Folded {
    /// In the order in which they first appear.
    pub patterns: Vec<Pattern>,
    /// Tensors whose names are of yet other patterns.
    pub left_out: u64,
}

#[derive(Default)]
struct Kind {
    tensors: u64,
    columns: Vec<BTreeSet<u32>>,
}

/// Folds the names of `tensors`.
pub fn fold<'t>(tensors: impl Iterator<Item = &'t Tensor>) -> Folded {
    let mut numbers: HashMap<(String, Dtype, &'t [u64]), usize> = HashMap::new();
    let (mut kinds, mut left_out): (Vec<Kind>, u64) = (Vec::new(), 0);
    for tensor in tensors {
        let (template, found) = split(&tensor.name);
        let key = (template, tensor.dtype, &*tensor.shape);
        let kind = match numbers.get(&key) {
            Some(&number) => &mut kinds[number],
            None if kinds.len() == MAX_PATTERNS => {
                left_out += 1;
                continue;
            }
            None => {
                numbers.insert(key, kinds.len());
                kinds.push(Kind { tensors: 0, columns: vec![BTreeSet::new(); found.len()] });
                let last = kinds.len() - 1;
                &mut kinds[last]
            }
        };
        kind.tensors += 1;
        for (column, number) in kind.columns.iter_mut().zip(found) {
            column.insert(number);
        }
    }
    let mut named: Vec<_> = numbers.into_iter().collect();
    named.sort_unstable_by_key(|(_, number)| *number);
    let pattern = |(((template, dtype, shape), _), kind): ((_, _), &Kind)| {
        let (template, shape): (String, &[u64]) = (template, shape);
        let mut columns = kind.columns.iter();
        let parts = template.split('.').map(|part| match part {
            PLACE => columns.next().map(ranges).unwrap_or_default(),
            _ => part.to_owned(),
        });
        let name = parts.collect::<Vec<_>>().join(".");
        Pattern { name, tensors: kind.tensors, dtype, shape: shape.into() }
    };
    Folded { patterns: named.into_iter().zip(&kinds).map(pattern).collect(), left_out }
}

/// A name with its numbers taken out, and these.
fn split(name: &str) -> (String, Vec<u32>) {
    let (mut template, mut numbers) = (String::with_capacity(name.len()), Vec::new());
    for (place, part) in name.split('.').enumerate() {
        if place > 0 {
            template.push('.');
        }
        let digits = part.len() <= MAX_DIGITS && part.bytes().all(|b| b.is_ascii_digit());
        match part.parse().ok().filter(|_| digits) {
            Some(number) => {
                numbers.push(number);
                template.push_str(PLACE);
            }
            None => template.push_str(part),
        }
    }
    (template, numbers)
}

/// `{0..3,5}`; a single number as it is.
fn ranges(numbers: &BTreeSet<u32>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => runs.push((number, number)),
        }
    }
    if let [(first, last)] = runs[..]
        && first == last
    {
        return first.to_string();
    }
    let mut text = String::from("{");
    for (place, (first, last)) in runs.iter().take(MAX_RUNS).enumerate() {
        let comma = if place > 0 { "," } else { "" };
        // Writing to a String cannot fail.
        let _ = if first == last {
            write!(text, "{comma}{first}")
        } else {
            write!(text, "{comma}{first}..{last}")
        };
    }
    if runs.len() > MAX_RUNS {
        text.push_str(",…");
    }
    text + "}"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folded(names: impl Iterator<Item = (String, u64)>) -> (Vec<(String, u64)>, u64) {
        let tensor = |(name, length): (String, u64)| Tensor {
            name: name.into(),
            dtype: Dtype::BF16,
            shape: [length].into(),
            shard: 0,
            offset: 0,
            bytes: 2 * length,
        };
        let found = fold(names.map(tensor).collect::<Vec<_>>().iter());
        (found.patterns.into_iter().map(|p| (p.name, p.tensors)).collect(), found.left_out)
    }

    #[test]
    fn gaps_and_lone_numbers_are_kept() {
        let names = [(0, 4), (1, 4), (2, 4), (5, 4), (7, 8)];
        let names = names.map(|(layer, length)| (format!("layers.{layer}.w"), length));
        let expected = [("layers.{0..2,5}.w".to_owned(), 4), ("layers.7.w".to_owned(), 1)];
        assert_eq!(folded(names.into_iter()), (expected.to_vec(), 0));
        let odd = ["a..0", "1234567890", "٣.x", ""].map(|name| (name.to_owned(), 1));
        let same = odd.clone().map(|(name, _)| (name, 1));
        assert_eq!(folded(odd.into_iter()), (same.to_vec(), 0));
    }

    #[test]
    fn names_beyond_all_measure_are_counted() {
        let (found, left_out) = folded((0..6_000).map(|n| (format!("n{n}"), 1)));
        assert_eq!((found.len(), left_out), (MAX_PATTERNS, 1_000));
        let (found, _) = folded((0..1_000).map(|n| (format!("w.{}", 2 * n), 1)));
        assert!(found[0].0.starts_with("w.{0,2,4,") && found[0].0.ends_with(",198,…}"));
    }
}
