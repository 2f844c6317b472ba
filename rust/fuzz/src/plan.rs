//! Saved plans: the input is one, held against a tiny checkpoint.
//!
//! `SOURCE` in it stands for the digest of that checkpoint, so that a plan gets as far as being
//! made again.

use lingconv_core::error::Kind;
use lingconv_core::plan::saved::SavedPlan;
use lingconv_core::plan::{Request, summary};

use crate::{folder, sound, tiny};

/// Checks one input.
///
/// # Panics
/// If a law does not hold.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let place = folder::scratch();
    let config = tiny::config(0);
    let tensors = tiny::model(&config).map(|model| tiny::tensors(&model, false));
    let shards = vec![tensors.unwrap_or_default()];
    let Some(catalog) = sound(tiny::catalog(place.path(), &config, shards)) else { return };
    let text = text.replace("SOURCE", &catalog.digest());
    let Some(saved) = sound(SavedPlan::parse(&text)) else { return };
    let Ok(request) = serde_json::to_string(&saved.request) else { panic!("it cannot be saved") };
    // What can be saved can be asked for, unless it makes no sense for any checkpoint.
    sound(Request::parse(&request));
    match saved.derive(&catalog) {
        Ok(plan) => {
            let summary = sound(summary::summarize(&catalog, &plan));
            let again = summary.and_then(|summary| sound(SavedPlan::new(&plan, &summary)));
            assert!(again.is_some_and(|again| again.derive(&catalog).is_ok()));
        }
        Err(error) => assert_ne!(error.kind, Kind::Internal, "{error}"),
    }
}
