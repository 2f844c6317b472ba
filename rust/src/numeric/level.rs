//! Instruction-set levels, and the one place where a kernel is entered with more than the baseline's instructions.

use std::fmt;
use std::str::FromStr;

/// How a kernel runs. Every level writes the same bytes; they differ in speed alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// The definition: one element at a time, integer rounding, shared with nothing.
    Scalar,
    /// The fast kernels, compiled for what every CPU of the target has.
    Baseline,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl Level {
    const ALL: [Self; 4] = [Self::Scalar, Self::Baseline, Self::Avx2, Self::Avx512];

    /// The fastest level this CPU can run.
    pub fn detect() -> Self {
        if Self::Avx512.is_available() {
            Self::Avx512
        } else if Self::Avx2.is_available() {
            Self::Avx2
        } else {
            Self::Baseline
        }
    }

    /// Every level this CPU can run, slowest first.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|level| level.is_available()).collect()
    }

    /// Whether this CPU can run the level.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar | Self::Baseline => true,
            Self::Avx2 => cpu_has_avx2(),
            Self::Avx512 => cpu_has_avx512(),
        }
    }

    /// The name used on the command line and in the environment.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Baseline => "baseline",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

#[cfg(target_arch = "x86_64")]
fn cpu_has_avx512() -> bool {
    cpu_has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_has_avx2() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_has_avx512() -> bool {
    false
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that names no [`Level`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown kernel level '{0}': expected scalar, baseline, avx2 or avx512")]
pub struct UnknownLevel(pub String);

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(word: &str) -> Result<Self, UnknownLevel> {
        Self::ALL
            .into_iter()
            .find(|level| level.name() == word)
            .ok_or_else(|| UnknownLevel(word.to_owned()))
    }
}

/// A loop that is compiled once per instruction set.
///
/// `run` and all it calls must be `#[inline(always)]`: what is not inlined is compiled for the baseline.
/// `FMA` says that a fused multiply-add is one instruction here, not a library call.
pub(crate) trait Kernel {
    type Output;
    fn run<const FMA: bool>(self) -> Self::Output;
}

/// Runs `kernel` with the instructions of `level`; [`Level::Scalar`] gets the baseline's.
///
/// # Panics
/// If this CPU cannot run the level.
pub(crate) fn dispatch<K: Kernel>(level: Level, kernel: K) -> K::Output {
    assert!(level.is_available(), "this CPU cannot run kernel level {level}");
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `is_available` has just found every feature that `run_avx2` enables.
        #[allow(unsafe_code)]
        Level::Avx2 => unsafe { run_avx2(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `is_available` has just found every feature that `run_avx512` enables.
        #[allow(unsafe_code)]
        Level::Avx512 => unsafe { run_avx512(kernel) },
        _ => kernel.run::<false>(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<true>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<true>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for level in Level::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        assert_eq!("sse2".parse::<Level>(), Err(UnknownLevel("sse2".into())));
    }

    #[test]
    fn detected_level_is_the_best_available() {
        let available = Level::available();
        assert!(available.is_sorted());
        assert_eq!(available.last(), Some(&Level::detect()));
        assert_eq!(available[..2], [Level::Scalar, Level::Baseline]);
    }
}
