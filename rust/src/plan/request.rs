//! What the user asked for.

use serde::{Deserialize, Serialize};

use super::reshard::Reshard;
use super::select;
use crate::catalog::{Catalog, MAX_TENSORS};
use crate::dialect::{Dialect, ScaleKind};
use crate::error::{Error, Kind, Result};
use crate::json::at_most;
use crate::model::{Architecture, Model};
use crate::numeric::Arith;

/// Largest factor of `--rope-yarn`; longer contexts have not been published for any model.
const MAX_YARN: f64 = 1024.0;

/// Patterns of an option that are read; the planner takes fewer, and says so.
const MAX_PATTERNS: usize = 10_000;

/// What kind of plan to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Wide floats to FP8.
    Quantize,
    /// FP8 to BF16.
    Dequantize,
    /// Every rank's tensors in files of its own.
    Reshard,
}

impl Verb {
    /// The verb as it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quantize => "quantize fp8",
            Self::Dequantize => "dequantize",
            Self::Reshard => "reshard",
        }
    }
}

/// A request, complete: it is saved in plans and recorded in manifests, so user files are held as
/// text, not as paths.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub struct Request {
    /// What kind of plan to make.
    pub verb: Verb,
    /// Layout and target of a `reshard`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reshard: Option<Reshard>,
    /// Name of a built-in dialect.
    #[serde(default = "default_dialect")]
    pub dialect: String,
    /// Text of a dialect file that replaces the built-in one.
    #[serde(default)]
    pub dialect_file: Option<String>,
    /// Text of an architecture file that replaces the built-in ones.
    #[serde(default)]
    pub arch_file: Option<String>,
    /// What scales may be.
    #[serde(default = "default_scale")]
    pub scale: ScaleKind,
    /// How maxima are divided by 448.
    #[serde(default = "default_arith")]
    pub scale_arith: Arith,
    /// Globs over tensor names: encode only these.
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_PATTERNS>")]
    pub only: Vec<String>,
    /// Globs over tensor names: never encode these.
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_PATTERNS>")]
    pub skip: Vec<String>,
    /// Encode routed experts alone.
    #[serde(default)]
    pub experts_only: bool,
    /// Leave a tensor with NaN or infinity unquantised instead of failing.
    #[serde(default)]
    pub keep_nonfinite: bool,
    /// Tensors found to hold NaN or infinity while streaming, under `keep_nonfinite`.
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_TENSORS>")]
    pub nonfinite: Vec<String>,
    /// Leave out the MTP layers.
    #[serde(default)]
    pub drop_mtp: bool,
    /// Factor of the YaRN `rope_scaling` written to config.json.
    #[serde(default)]
    pub rope_yarn: Option<f64>,
    /// Check the laws of encoding on every tensor while streaming.
    #[serde(default)]
    pub prove: bool,
    /// Measure the error of every encoded tensor while streaming.
    #[serde(default)]
    pub report: bool,
}

fn default_dialect() -> String {
    "deepseek".into()
}

fn default_scale() -> ScaleKind {
    ScaleKind::F32
}

fn default_arith() -> Arith {
    Arith::Ieee
}

impl Request {
    /// Parses a request. [`Kind::Usage`] for anything it does not know.
    pub fn parse(json: &str) -> Result<Self> {
        let request: Self = serde_json::from_str(json)
            .map_err(|e| Error::usage(format!("malformed request: {e}")))?;
        request.check()?;
        Ok(request)
    }

    /// Refuses values that make no sense for any checkpoint.
    pub(crate) fn check(&self) -> Result<()> {
        match self.rope_yarn {
            Some(factor) if !(factor > 1.0 && factor <= MAX_YARN) => Err(Error::usage(format!(
                "--rope-yarn takes a factor above 1 and at most {MAX_YARN}, not {factor}"
            ))),
            _ => self.reshard.as_ref().map_or(Ok(()), Reshard::check),
        }?;
        self.check_combination()?;
        select::check_patterns(&self.only, &self.skip)
    }

    /// Refuses fields that no command line gives together.
    fn check_combination(&self) -> Result<()> {
        let refuse = |what: &str| Err(Error::usage(format!("a request {what}")));
        if self.reshard.is_some() != (self.verb == Verb::Reshard) {
            return refuse("has a layout of ranks if, and only if, it is to reshard");
        }
        if !self.nonfinite.is_empty() && !self.keep_nonfinite {
            return refuse("names tensors to keep, yet none may be kept");
        }
        let chooses = !self.only.is_empty() || !self.skip.is_empty() || self.experts_only;
        let measures = self.prove || self.report || self.keep_nonfinite;
        let encodes = match &self.reshard {
            Some(ask) => ask.format.is_some(),
            None => self.verb == Verb::Quantize,
        };
        if (chooses || measures) && !encodes {
            return refuse("has options of encoding, yet encodes nothing");
        }
        if self.drop_mtp && self.reshard.as_ref().is_some_and(|ask| ask.keep_mtp) {
            return refuse("to keep the MTP layers and to drop them");
        }
        Ok(())
    }

    /// The dialect asked for.
    pub fn load_dialect(&self) -> Result<Dialect> {
        if let Some(text) = &self.dialect_file {
            return Dialect::parse(text).map_err(|e| Error::usage(format!("dialect file: {e}")));
        }
        Dialect::builtin(&self.dialect).ok_or_else(|| {
            Error::usage(format!("no dialect is called {:?}", self.dialect))
                .hint(format!("choose one of: {}", Dialect::names().collect::<Vec<_>>().join(", ")))
        })
    }

    /// The catalog's model: by the user's architecture file, else by a built-in one; `None` if
    /// the architecture is unknown.
    pub fn load_model(&self, catalog: &Catalog) -> Result<Option<Model>> {
        load_model(catalog, self.arch_file.as_deref())
    }
}

/// As [`Request::load_model`], for callers without a request.
pub fn load_model(catalog: &Catalog, arch_file: Option<&str>) -> Result<Option<Model>> {
    let config_path = || catalog.root.path().join(crate::catalog::CONFIG);
    let Some(config) = &catalog.config else {
        return match arch_file {
            Some(_) => Err(Error::new(Kind::Invalid, "config.json is missing").at(config_path())),
            None => Ok(None),
        };
    };
    let architecture = match arch_file {
        Some(text) => Some(Architecture::parse(text)?),
        None => Architecture::builtin_for(config),
    };
    architecture.map(|a| a.model(config)).transpose().map_err(|e| e.at(config_path()))
}
