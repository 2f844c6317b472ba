//! Dialects: how an FP8 checkpoint is spelled and how its scales are floored, as data.
//!
//! A dialect is one TOML file. The five in `data/dialects` are embedded; a user may pass another of the same form. The
//! arithmetic it can ask for is the closed list of [`crate::numeric`]; a file only chooses from it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::numeric::{
    Arith, Encoding, Grid, PowerOfTwo, Quotient, ScaleRule, StoredScale, bf16_to_f32, f32_to_bf16,
};

const BUILTIN: [(&str, &str); 5] = [
    ("deepseek", include_str!("../data/dialects/deepseek.toml")),
    ("ling", include_str!("../data/dialects/ling.toml")),
    ("compressed-tensors", include_str!("../data/dialects/compressed-tensors.toml")),
    (
        "compressed-tensors-channel",
        include_str!("../data/dialects/compressed-tensors-channel.toml"),
    ),
    ("compressed-tensors-cpu", include_str!("../data/dialects/compressed-tensors-cpu.toml")),
];

/// The kind of scale asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScaleKind {
    /// As the dialect computes it.
    #[default]
    F32,
    /// A power of two that fits E8M0.
    Ue8m0,
}

impl fmt::Display for ScaleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Ue8m0 => "ue8m0",
        })
    }
}

impl FromStr for ScaleKind {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        [Self::F32, Self::Ue8m0]
            .into_iter()
            .find(|kind| kind.to_string() == word)
            .ok_or_else(|| format!("unknown scale kind '{word}': expected f32 or ue8m0"))
    }
}

/// Which `quantization_config` describes the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConfigFamily {
    /// `quant_method: fp8`.
    Fp8,
    /// `quant_method: compressed-tensors`.
    CompressedTensors,
}

/// Which elements share a scale, in the words of compressed-tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Rectangles of `block` rows and columns.
    Block,
    /// Output rows.
    Channel,
}

/// A dialect whose fields have passed every check.
#[derive(Clone, Debug, PartialEq)]
pub struct Dialect {
    file: File,
    grid: Grid,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    description: String,
    quotient: Quotient,
    grid: GridSection,
    scale: ScaleSection,
    ue8m0: Option<Ue8m0Section>,
    config: ConfigSection,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct GridSection {
    strategy: Strategy,
    block: Option<[usize; 2]>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScaleSection {
    suffix: String,
    dtype: StoredScale,
    floor: Option<Number>,
    zero: Option<Number>,
    kinds: Vec<ScaleKind>,
    ariths: Vec<Arith>,
    #[serde(default)]
    power_of_two: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ue8m0Section {
    floor: Number,
    scale_fmt: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigSection {
    family: ConfigFamily,
    skip_list: String,
}

/// A positive finite f32: a TOML number, or a string with its bits such as `"0x2B8D0000"`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "NumberText")]
struct Number(f32);

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberText {
    Value(f64),
    Bits(String),
}

impl TryFrom<NumberText> for Number {
    type Error = String;

    fn try_from(text: NumberText) -> Result<Self, String> {
        let value = match text {
            NumberText::Value(value) => value as f32,
            NumberText::Bits(text) => text
                .strip_prefix("0x")
                .filter(|digits| digits.len() == 8)
                .and_then(|digits| u32::from_str_radix(digits, 16).ok())
                .map(f32::from_bits)
                .ok_or_else(|| {
                    format!("'{text}' is not 0x and the eight hexadecimal digits of an f32")
                })?,
        };
        if value > 0.0 && value.is_finite() {
            Ok(Self(value))
        } else {
            Err(format!("{value} is not a positive finite f32"))
        }
    }
}

impl Dialect {
    /// The embedded dialect of this name.
    pub fn builtin(name: &str) -> Option<Self> {
        let (_, text) = BUILTIN.iter().find(|(known, _)| *known == name)?;
        Self::parse(text).ok()
    }

    /// Names of the embedded dialects, the default first.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUILTIN.iter().map(|(name, _)| *name)
    }

    /// Reads a dialect file.
    ///
    /// # Errors
    /// What is malformed, unknown, missing, contradictory or out of bounds, in one sentence without a full stop.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File =
            toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        let grid = file.grid.check()?;
        let dialect = Self { file, grid };
        dialect.check()?;
        Ok(dialect)
    }

    /// Its name on the command line.
    pub fn name(&self) -> &str {
        &self.file.name
    }

    /// What it is, in one line.
    pub fn description(&self) -> &str {
        &self.file.description
    }

    /// Which elements share a scale.
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// The same in the words of compressed-tensors.
    pub fn strategy(&self) -> Strategy {
        self.file.grid.strategy
    }

    /// The name of a weight's scale tensor: the suffix appended to the weight's own.
    pub fn scale_name(&self, weight: &str) -> String {
        format!("{weight}{}", self.file.scale.suffix)
    }

    /// Element type of the scale tensors.
    pub fn scale_dtype(&self) -> StoredScale {
        self.file.scale.dtype
    }

    /// Which `quantization_config` is written.
    pub fn config_family(&self) -> ConfigFamily {
        self.file.config.family
    }

    /// The key of `quantization_config` that lists modules kept as they are.
    pub fn skip_list(&self) -> &str {
        &self.file.config.skip_list
    }

    /// The value of `scale_fmt` in `quantization_config`, where this kind of scale asks for that key.
    pub fn scale_fmt(&self, scale: ScaleKind) -> Option<&str> {
        match scale {
            ScaleKind::F32 => None,
            ScaleKind::Ue8m0 => self.file.ue8m0.as_ref().map(|section| section.scale_fmt.as_str()),
        }
    }

    /// The kinds of scale it knows.
    pub fn scale_kinds(&self) -> &[ScaleKind] {
        &self.file.scale.kinds
    }

    /// The arithmetics it knows.
    pub fn ariths(&self) -> &[Arith] {
        &self.file.scale.ariths
    }

    /// Roles whose scales are rounded up to powers of two.
    pub fn power_of_two_roles(&self) -> &[String] {
        &self.file.scale.power_of_two
    }

    /// How a tensor is encoded: `role` is its role in the architecture, where that is known.
    ///
    /// # Errors
    /// If the dialect does not know this kind of scale or this arithmetic.
    pub fn encoding(
        &self,
        role: Option<&str>,
        scale: ScaleKind,
        arith: Arith,
    ) -> Result<Encoding, String> {
        let File { name, quotient, scale: section, .. } = &self.file;
        if !section.kinds.contains(&scale) {
            return Err(format!("dialect '{name}' has no {scale} scales"));
        }
        if !section.ariths.contains(&arith) {
            return Err(format!("dialect '{name}' has no {arith} scale arithmetic"));
        }
        let rounded = role.is_some_and(|role| section.power_of_two.iter().any(|name| name == role));
        let (floor, power_of_two) = match (scale, &self.file.ue8m0) {
            (ScaleKind::Ue8m0, Some(ue8m0)) => (Some(ue8m0.floor), Some(PowerOfTwo::Ue8m0)),
            _ => (section.floor, rounded.then_some(PowerOfTwo::ExponentBits)),
        };
        let scale_rule = ScaleRule {
            floor: floor.map(|number| number.0),
            zero: section.zero.map(|number| number.0),
            arith,
            power_of_two,
            stored: section.dtype,
        };
        Ok(Encoding { grid: self.grid, rule: scale_rule, quotient: *quotient })
    }

    fn check(&self) -> Result<(), String> {
        let File { name, scale, ue8m0, config, .. } = &self.file;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure(
            !name.is_empty() && name.chars().all(plain),
            "name: lower-case letters, digits and hyphens only",
        )?;
        let word = |text: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        ensure(
            word(&scale.suffix) && scale.suffix.starts_with('_'),
            "scale.suffix: a word that starts with '_'",
        )?;
        ensure(word(&config.skip_list), "config.skip_list: a word")?;
        ensure(scale.kinds.contains(&ScaleKind::F32), "scale.kinds: 'f32' is always among them")?;
        ensure(!scale.ariths.is_empty(), "scale.ariths: at least one")?;
        ensure(
            scale.kinds.contains(&ScaleKind::Ue8m0) == ue8m0.is_some(),
            "scale.kinds names 'ue8m0' if and only if there is a section [ue8m0]",
        )?;
        for &kind in &scale.kinds {
            for &arith in &scale.ariths {
                for role in scale.power_of_two.iter().map(|role| Some(role.as_str())).chain([None])
                {
                    check_rule(&self.encoding(role, kind, arith)?.rule)?;
                }
            }
        }
        Ok(())
    }
}

impl GridSection {
    fn check(&self) -> Result<Grid, String> {
        const MAX_SIDE: usize = 4096;
        match (self.strategy, self.block) {
            (Strategy::Channel, None) => Ok(Grid::Channel),
            (Strategy::Channel, Some(_)) => Err("grid.block: a channel has none".into()),
            (Strategy::Block, None) => Err("grid.block: missing".into()),
            (Strategy::Block, Some([rows, cols])) => {
                let side = 1..=MAX_SIDE;
                ensure(
                    side.contains(&rows) && side.contains(&cols),
                    "grid.block: sides of 1 to 4096",
                )?;
                Ok(Grid::Block { rows, cols })
            }
        }
    }
}

/// Every block has to get a scale that can be divided by, and that is stored as it was used.
fn check_rule(rule: &ScaleRule) -> Result<(), String> {
    let smallest = rule.scale(0.0);
    ensure(smallest > 0.0, "scale.floor or scale.zero: a block of zeros gets a scale of 0")?;
    let largest = rule.scale(f32::MAX);
    ensure(largest.is_finite() && largest >= smallest, "scale.floor or scale.zero: too large")?;
    let exact = |zero| {
        rule.stored == StoredScale::F32
            || bf16_to_f32(f32_to_bf16(zero)).to_bits() == zero.to_bits()
    };
    ensure(rule.zero.is_none_or(exact), "scale.zero: not representable in scale.dtype")
}

fn ensure(holds: bool, message: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(message.into()) }
}

#[cfg(test)]
mod tests;
