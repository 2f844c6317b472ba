//! Checkpoint folders: the input is a folder of config.json, index and headers, see
//! [`crate::folder`].
//!
//! What is opened is what its files hold, and everything that asks a catalog gets an answer.

use lingconv_core::catalog::Catalog;
use lingconv_core::inspect;
use lingconv_core::plan::request::load_model;

use crate::{folder, sound};

/// Most tensors whose roles are asked for.
const MAX_ROLES: usize = 500;

/// Checks one input.
///
/// # Panics
/// If a law does not hold.
pub fn check(data: &[u8]) {
    let place = folder::scratch();
    folder::write(place.path(), &folder::files(data));
    let Some(catalog) = sound(Catalog::open(place.path())) else { return };
    holds(&catalog);
    let model = sound(load_model(&catalog, None)).flatten();
    let summary = inspect::summarize(&catalog, model.as_ref());
    assert!(serde_json::to_string(&summary).is_ok());
    for tensor in catalog.tensors.iter().take(MAX_ROLES) {
        let placed = model.as_ref().and_then(|model| model.role_of(&tensor.name));
        if let Some(placed) = placed {
            let named = placed.rule.name(placed.layer.unwrap_or(0), placed.expert.unwrap_or(0));
            assert_eq!(named, *tensor.name);
        }
    }
}

/// Every tensor is found by its name and lies in its shard.
fn holds(catalog: &Catalog) {
    for (position, tensor) in catalog.tensors.iter().enumerate() {
        assert_eq!(catalog.find(&tensor.name), Some(position as u32), "{}", tensor.name);
        let shard = catalog.shard_of(position as u32);
        assert!((shard.first..shard.first + shard.count).contains(&position));
        let end = tensor.offset.checked_add(tensor.bytes);
        assert!(tensor.offset >= shard.data_start && end.is_some_and(|e| e <= shard.stamp.size));
    }
    assert_eq!(catalog.digest().len(), 64);
}
