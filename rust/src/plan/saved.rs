//! Saved plans: small, portable, executed only if they can be derived again exactly.
//!
//! A saved plan holds the request, the catalog's digest and the plan's digest. It names no folder,
//! so it can be reviewed here and run there, against a copy of the same checkpoint.

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

fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}
