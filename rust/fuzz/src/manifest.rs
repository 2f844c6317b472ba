//! Folders that were cut for ranks, opened as what they were cut from.
//!
//! The input is a folder (see [`crate::folder`]) of an original's headers and `config.json`, or
//! `preset`, the number of a tiny one and perhaps `fp8`; the `request.json` that it is cut by, and
//! perhaps a `patch.json`. What the cut would write is put in place, with a manifest that is true
//! but for the patch. Unpatched it opens as the original was, and patched it is opened as something
//! sound or refused.

use std::io::Write;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use lingconv_core::catalog::{CONFIG, Catalog, MANIFEST};
use lingconv_core::exec::hash::hex;
use lingconv_core::plan::{self, Plan, Request, original};
use lingconv_core::verify::digests;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{folder, sound, tiny};

/// Most bytes of a manifest: larger ones only take longer.
const MAX_MANIFEST: usize = 1 << 20;

/// Checks one input.
///
/// # Panics
/// If a law does not hold.
pub fn check(data: &[u8]) {
    let files = folder::files(data);
    let place = folder::scratch();
    let (source, output) = (place.path().join("source"), place.path().join("output"));
    folder::write(&source, &files);
    if let Some(preset) = folder::text(&files, "preset") {
        let which = preset.bytes().find(u8::is_ascii_digit).unwrap_or(b'0');
        let files = tiny::files(usize::from(which - b'0'), preset.contains("fp8"));
        let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
        folder::write(&source, &files);
    }
    let Some(catalog) = sound(Catalog::open(&source)) else { return };
    let request = folder::text(&files, "request.json").unwrap_or("{}");
    let Some(request) = sound(Request::parse(request)) else { return };
    let Some(plan) = sound(plan::build(&catalog, &request)) else { return };
    let mut manifest = manifest(&catalog, &plan);
    let patch = folder::text(&files, "patch.json").and_then(|text| serde_json::from_str(text).ok());
    if let Some(patch) = &patch {
        merge(&mut manifest, patch);
    }
    let text = manifest.to_string();
    if text.len() > MAX_MANIFEST || !written(&output, &plan, &text) {
        return;
    }
    sound(digests::parse(&text, MANIFEST, Some(digests::Kind::Manifest)));
    if let Some(opened) = sound(original::open(&output))
        && patch.is_none()
    {
        same(&catalog, &opened);
    }
}

/// What was cut without a loss is what it was.
fn same(catalog: &Catalog, opened: &Catalog) {
    let Some(pieces) = opened.pieces.as_ref().filter(|pieces| pieces.lost.is_empty()) else {
        return;
    };
    assert_eq!(catalog.digest(), opened.digest());
    for (tensor, held) in opened.tensors.iter().zip(&pieces.tensors) {
        assert!(held.covers(tensor.bytes.checked_div(held.row_bytes).unwrap_or(0)));
        for piece in &held.pieces {
            let size = pieces.files[piece.file as usize].stamp.size;
            assert!(piece.offset <= size, "{} beyond the end of its file", tensor.name);
        }
    }
}

fn written(output: &Path, plan: &Plan, manifest: &str) -> bool {
    folder::write(output, &[(MANIFEST, manifest.as_bytes())]);
    if let Some(config) = plan.config_text() {
        folder::write(output, &[(CONFIG, config.as_bytes())]);
    }
    plan.tasks.iter().flat_map(|task| &task.outputs).all(|file| {
        let Some(header) = sound(file.header()) else { return false };
        let hole = file.size - header.len() as u64;
        folder::write_with_hole(&output.join(&file.path), &header, hole).is_ok()
    })
}

fn manifest(catalog: &Catalog, plan: &Plan) -> Value {
    let shards = catalog.shards.iter().map(|shard| {
        json!({
            "name": shard.name,
            "size": shard.stamp.size,
            "header_sha256": hex(&Sha256::digest(&*shard.raw_header)),
            "header": packed(&shard.raw_header),
        })
    });
    json!({
        "schema": "lingconv.manifest/1",
        "plan": plan.digest(),
        "tensors": plan.tensor_digest(),
        "request": plan.request,
        "files": [],
        "sidecars": [],
        "source": {
            "digest": catalog.digest(),
            "config": catalog.config_text,
            "index": catalog.raw_index.as_deref().map(packed),
            "shards": shards.collect::<Vec<Value>>(),
        },
    })
}

fn packed(bytes: &[u8]) -> String {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    let packed = encoder.write_all(bytes).and_then(|()| encoder.finish());
    BASE64.encode(packed.unwrap_or_default())
}

/// Puts `patch` into `value`: objects key by key, lists place by place, everything else whole.
fn merge(value: &mut Value, patch: &Value) {
    match (value, patch) {
        (Value::Object(keys), Value::Object(patch)) => {
            for (key, patch) in patch {
                merge(keys.entry(key).or_insert(Value::Null), patch);
            }
        }
        (Value::Array(list), Value::Array(patch)) if patch.len() <= list.len() => {
            list.iter_mut().zip(patch).for_each(|(value, patch)| merge(value, patch));
        }
        (value, patch) => *value = patch.clone(),
    }
}
