//! What the tests of all forms share: digests, texts of each form, folders of small files.

mod forms;
mod hostile;
mod traces;

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::*;
use crate::exec::hash::hex;

const COMMIT: &str = "11c5a3d5811f50298f278a704980280950aedb10";
const OTHER: &str = "22c5a3d5811f50298f278a704980280950aedb10";

fn sha256(seed: &str) -> String {
    hex(&Sha256::digest(seed))
}

fn sha1(seed: &str) -> String {
    sha256(seed)[..40].to_owned()
}

fn known(text: &str, origin: &str) -> Truth {
    parse(text, origin, None).unwrap()
}

fn refused(text: &str, origin: &str) -> Error {
    parse(text, origin, None).unwrap_err()
}

fn only(truth: &Truth, name: &str) -> FileDigest {
    let [digest] = truth.files[name].digests.as_slice() else { panic!("{:?}", truth.files) };
    digest.clone()
}

fn is(truth: &Truth, name: &str, algorithm: Algorithm, hex: &str) {
    assert_eq!(only(truth, name), FileDigest { algorithm, hex: hex.to_owned() });
}

/// A folder of small files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        put(folder.path(), name, text);
    }
    folder
}

#[allow(clippy::disallowed_methods)]
fn put(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    path
}

fn found(folder: &Path) -> Vec<Truth> {
    detect(&Root::open(folder).unwrap()).unwrap()
}

fn metadata(commit: &str, etag: &str) -> String {
    format!("{commit}\n{etag}\n1712656091.123\n")
}

fn stored(files: &Value) -> String {
    json!({"format_version": 1, "files": files}).to_string()
}

fn resources(rows: &[(&str, &str, String)]) -> Value {
    let list: Vec<Value> = rows
        .iter()
        .map(|(name, algorithm, hex)| json!({"name": name, "algorithm": algorithm, "digest": hex}))
        .collect();
    Value::from(list)
}

fn statement(resources: &Value, method: &str) -> Value {
    let mut root = Sha256::new();
    for resource in resources.as_array().unwrap() {
        let digest = resource["digest"].as_str().unwrap();
        let bytes: Vec<u8> = (0..digest.len() / 2)
            .map(|i| u8::from_str_radix(&digest[2 * i..2 * i + 2], 16).unwrap())
            .collect();
        root.update(bytes);
    }
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "model", "digest": {"sha256": hex(&root.finalize())}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {"serialization": {"method": method}, "resources": resources},
    })
}

fn envelope(statement: &Value) -> Value {
    let payload = BASE64.encode(statement.to_string());
    json!({"payload": payload, "payloadType": "application/vnd.in-toto+json", "signatures": []})
}

fn bundle(statement: &Value) -> String {
    json!({"mediaType": "x", "verificationMaterial": {}, "dsseEnvelope": envelope(statement)})
        .to_string()
}

fn manifest_text(path: &str, tensors: &Value) -> String {
    json!({
        "schema": "lingconv.manifest/1",
        "source": {"digest": "x", "shards": []},
        "files": [{"path": path, "size": 4196, "sha256": sha256("m"), "data_start": 4096,
                   "tensors": tensors}],
        "sidecars": [{"path": "config.json", "size": 3, "sha256": sha256("c")}],
    })
    .to_string()
}

fn modelscope_text(files: &Value) -> String {
    json!({"Code": 200, "Data": {"Files": files, "LatestCommitter": null}, "Message": "success",
           "Success": true})
    .to_string()
}
