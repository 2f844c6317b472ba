//! Which target a name, an engine or a version stands for.

use super::Target;
use crate::error::{Error, Result};

pub(super) const BUILTIN: &[&str] = &[
    include_str!("../../data/targets/vllm-0.32.toml"),
    include_str!("../../data/targets/vllm-0.11.toml"),
    include_str!("../../data/targets/hf.toml"),
    include_str!("../../data/targets/sglang.toml"),
];

impl Target {
    /// The built-in targets, newest of each engine first.
    pub fn builtins() -> impl Iterator<Item = Self> {
        // Built-in files are parsed by a test, so that none is skipped here.
        BUILTIN.iter().filter_map(|text| Self::parse(text).ok())
    }

    /// The built-in target of that name.
    pub fn builtin(name: &str) -> Option<Self> {
        Self::builtins().find(|t| t.name == name)
    }

    /// The text of the built-in target of that name.
    pub fn builtin_text(name: &str) -> Option<&'static str> {
        let named = |text: &str| Self::parse(text).is_ok_and(|t| t.name == name);
        BUILTIN.iter().find(|text| named(text)).copied()
    }

    /// The target that `text` names: a profile by its name, or an engine with or without
    /// `@VERSION`; without, that of the version `installed` here.
    ///
    /// # Errors
    /// As [`Self::select`].
    pub fn named(text: &str, installed: Option<&str>) -> Result<Self> {
        if let Some(target) = Self::builtin(text) {
            return Ok(target);
        }
        match text.split_once('@') {
            Some((engine, version)) => Self::select(engine, Some(version)),
            None => Self::select(text, installed),
        }
    }

    /// The newest target of `engine`, or the one tested with its `version`.
    ///
    /// # Errors
    /// [`Kind::Usage`](crate::error::Kind::Usage) for an unknown engine,
    /// [`Kind::Impossible`](crate::error::Kind::Impossible) for a version that none was tested with.
    pub fn select(engine: &str, version: Option<&str>) -> Result<Self> {
        let of_engine: Vec<Self> = Self::builtins().filter(|t| t.engine == engine).collect();
        let Some(newest) = of_engine.first() else {
            let mut engines: Vec<String> = Self::builtins().map(|t| t.engine).collect();
            engines.dedup();
            return Err(Error::usage(format!("no target is called {engine:?}"))
                .hint(format!("choose one of: {}", engines.join(", "))));
        };
        let Some(version) = version else { return Ok(newest.clone()) };
        let wanted = numbers(version)
            .ok_or_else(|| Error::usage(format!("{version:?} is no version of {engine}")))?;
        of_engine.iter().find(|t| t.covers(&wanted)).cloned().ok_or_else(|| {
            let tested = of_engine.iter().map(|t| {
                format!("{}: from {} up to and without {}", t.name, t.versions[0], t.versions[1])
            });
            Error::impossible(format!("no target was tested with {engine} {version}"))
                .details(tested.collect())
                .hint(format!("choose one by its name: --target {}", newest.name))
        })
    }

    fn covers(&self, version: &[u64]) -> bool {
        let bound = |i: usize| numbers(&self.versions[i]).unwrap_or_default();
        version >= bound(0).as_slice() && version < bound(1).as_slice()
    }
}

/// The numbers of a version such as `0.32.0`; what follows them (`rc1`, `+cpu`) is left out.
pub(super) fn numbers(version: &str) -> Option<Vec<u64>> {
    let plain = version.split(['+', '-']).next()?;
    let mut numbers = Vec::new();
    for part in plain.split('.') {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        if digits.is_empty() {
            break;
        }
        numbers.push(digits.parse().ok()?);
    }
    // 0.33 and 0.33.0 are the same version.
    while numbers.len() > 1 && numbers.last() == Some(&0) {
        numbers.pop();
    }
    (!numbers.is_empty()).then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_select_targets() {
        let name = |version| Target::select("vllm", version).map(|t| t.name);
        assert_eq!(name(None).unwrap(), "vllm-0.32");
        assert_eq!(name(Some("0.11.2")).unwrap(), "vllm-0.11");
        assert_eq!(name(Some("0.32.1rc2+cpu")).unwrap(), "vllm-0.32");
        for between in ["0.12.0", "0.31.9", "0.33", "1.0"] {
            assert_eq!(name(Some(between)).unwrap_err().kind.exit_code(), 5, "{between}");
        }
        assert_eq!(name(Some("newest")).unwrap_err().kind.exit_code(), 2);
        assert_eq!(Target::select("trt", None).unwrap_err().kind.exit_code(), 2);
    }
}
