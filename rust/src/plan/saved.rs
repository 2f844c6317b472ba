//! Saved plans: small, portable, executed only if they can be derived again exactly.
//!
//! A saved plan holds the request, the catalog's digest and the plan's digest. It names no folder,
//! so it can be reviewed here and run there, against a copy of the same checkpoint.

use serde::de::{Deserializer, IgnoredAny};
use serde::{Deserialize, Serialize};

use super::data::{FORMAT, Plan};
use super::request::Request;
use super::summary::Summary;
use crate::catalog::Catalog;
use crate::error::{Error, Kind, Result};

const SCHEMA: &str = "lingconv.saved-plan/1";
/// Longest plan file that is read; one of ours has some kilobytes.
pub const MAX_SAVED: u64 = 64 << 20;

/// A plan on disk.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedPlan {
    schema: String,
    format: u32,
    /// Version of lingconv that saved it; for people.
    tool: String,
    /// What was asked for.
    pub request: Request,
    catalog_digest: String,
    plan_digest: String,
    /// What it does, as it was reviewed; not read back.
    #[serde(deserialize_with = "skip")]
    summary: serde_json::Value,
}

impl SavedPlan {
    /// What to write to a file.
    pub fn new(plan: &Plan, summary: &Summary) -> Result<Self> {
        let summary = serde_json::to_value(summary)
            .map_err(|e| Error::internal(format!("cannot write JSON: {e}")))?;
        Ok(Self {
            schema: SCHEMA.into(),
            format: FORMAT,
            tool: env!("CARGO_PKG_VERSION").into(),
            request: plan.request.clone(),
            catalog_digest: plan.catalog_digest.clone(),
            plan_digest: plan.digest(),
            summary,
        })
    }

    /// Parses a saved plan; [`Kind::Usage`] if it is none.
    pub fn parse(json: &str) -> Result<Self> {
        let saved: Self = serde_json::from_str(json)
            .map_err(|e| Error::usage(format!("not a saved plan: {e}")))?;
        if saved.schema != SCHEMA || saved.format != FORMAT {
            return Err(Error::usage(format!(
                "a plan of another version ({} format {}, this is {SCHEMA} format {FORMAT})",
                saved.schema, saved.format
            ))
            .hint("save the plan again with this version of lingconv"));
        }
        saved.request.check()?;
        Ok(saved)
    }

    /// Derives the plan again from `catalog`. [`Kind::Check`] if the source or the plan is not the
    /// one that was saved.
    pub fn derive(&self, catalog: &Catalog) -> Result<Plan> {
        let differs = |what: &str, saved: &str, found: &str| {
            Error::new(
                Kind::Check,
                format!(
                    "{what} is not the one that was saved: {}… then, {}… now",
                    short(saved),
                    short(found)
                ),
            )
            .at(catalog.root.path())
            .hint("review a new plan: save it again with --dry-run --save")
        };
        let found = catalog.digest();
        if found != self.catalog_digest {
            return Err(differs("the source", &self.catalog_digest, &found));
        }
        let plan = super::build(catalog, &self.request)?;
        let digest = plan.digest();
        if digest != self.plan_digest {
            return Err(differs("the plan", &self.plan_digest, &digest));
        }
        Ok(plan)
    }
}

/// Reads past a value without building it.
fn skip<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<serde_json::Value, D::Error> {
    IgnoredAny::deserialize(from).map(|_| serde_json::Value::Null)
}

fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(request: &str) -> Result<SavedPlan> {
        SavedPlan::parse(&format!(
            r#"{{"schema":"{SCHEMA}","format":{FORMAT},"tool":"0","request":{request},
            "catalog_digest":"","plan_digest":"","summary":[[[]]]}}"#
        ))
    }

    #[test]
    fn a_saved_request_is_checked_like_one_that_is_typed() {
        let cut = |rest: &str| {
            let rest = format!(r#"{{"target":"hf",{rest}}}"#);
            saved(&format!(r#"{{"verb":"reshard","reshard":{rest}}}"#))
        };
        assert!(saved(r#"{"verb":"quantize"}"#).is_ok() && cut(r#""tp":2,"pp":1,"ep":1"#).is_ok());
        let wrong = [
            cut(r#""tp":0,"pp":1,"ep":1"#),
            cut(r#""tp":1,"pp":4000000000,"ep":1"#),
            cut(r#""tp":1,"pp":1,"ep":1,"shard_size":0"#),
            cut(r#""tp":1,"pp":1,"ep":1,"rank":{"pp":1}"#),
            cut(r#""tp":4096,"pp":2,"ep":1"#),
            cut(r#""tp":1,"pp":1,"ep":1,"earlier":[{"pp":0}]"#),
            cut(r#""tp":1,"pp":1,"ep":1,"unknown":0"#),
            saved(r#"{"verb":"reshard"}"#),
            saved(r#"{"verb":"quantize","reshard":{"target":"hf","tp":1,"pp":1,"ep":1}}"#),
            saved(r#"{"verb":"quantize","rope_yarn":1e9}"#),
            saved(r#"{"verb":"quantize","nonfinite":["a"]}"#),
            saved(r#"{"verb":"quantize","only":["[a"]}"#),
            saved(r#"{"verb":"dequantize","prove":true}"#),
        ];
        for (case, result) in wrong.into_iter().enumerate() {
            assert_eq!(result.unwrap_err().kind, Kind::Usage, "case {case}");
        }
    }
}
