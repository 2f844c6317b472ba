//! `OpenSSF` model-signing bundles: digests of files inside a signed in-toto statement.
//!
//! The signature is not checked here. That takes keys, certificates or a transparency log, and is
//! what `model_signing verify` is for; this reads the digests that were signed.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::json::{self, Rows};
use super::{Algorithm, Expected, FileDigest, Kind, Truth, quoted, unverifiable};
use crate::error::{Error, Result};
use crate::exec::hash::hex;

/// Predicate of the form before 1.0, which lists the files as subjects.
const OLD_PREDICATE: &str = "https://model_signing/Digests/v0.1";

/// A bundle around an envelope around a statement; each may also stand alone.
#[derive(Deserialize)]
struct Bundle {
    #[serde(rename = "dsseEnvelope")]
    envelope: Option<Envelope>,
    payload: Option<String>,
}

#[derive(Deserialize)]
struct Envelope {
    payload: String,
}

#[derive(Deserialize)]
struct Statement {
    #[serde(rename = "predicateType")]
    predicate_type: String,
    subject: Rows<Subject>,
    predicate: Option<Predicate>,
}

#[derive(Deserialize)]
struct Subject {
    name: Option<String>,
    digest: SubjectDigest,
}

#[derive(Deserialize)]
struct SubjectDigest {
    sha256: Option<String>,
}

#[derive(Deserialize)]
struct Predicate {
    resources: Option<Rows<Resource>>,
    serialization: Option<Serialization>,
}

#[derive(Deserialize)]
struct Serialization {
    method: Option<String>,
}

#[derive(Deserialize)]
struct Resource {
    name: String,
    algorithm: String,
    digest: String,
}

pub(super) fn parse(text: &str, origin: &str) -> Result<Truth> {
    let bundle: Bundle = json::parse(text)?;
    let statement: Statement = match bundle.envelope.map(|e| e.payload).or(bundle.payload) {
        Some(payload) => json::parse(&decode(&payload)?)?,
        None => json::parse(text)?,
    };
    let mut truth = Truth::new(Kind::Signing, origin);
    truth.lists_everything = true;
    truth.note("the signature itself is not checked; `model_signing verify` does that");
    let predicate = statement.predicate;
    let method = predicate.as_ref().and_then(|p| p.serialization.as_ref()?.method.clone());
    if let Some(method) = method.filter(|m| m != "files") {
        let message = format!("the bundle signs {} of files, not whole files", quoted(&method));
        return Err(unverifiable(message)
            .hint("check it with `model_signing verify`, or have it signed by files"));
    }
    match predicate.and_then(|p| p.resources) {
        Some(resources) => add_resources(&mut truth, resources, &statement.subject)?,
        None if statement.predicate_type == OLD_PREDICATE => {
            add_subjects(&mut truth, statement.subject)?;
        }
        None => return Err(Error::invalid("an in-toto statement that signs no files of a model")),
    }
    Ok(truth)
}

fn decode(payload: &str) -> Result<String> {
    let bytes = STANDARD.decode(payload).or_else(|_| URL_SAFE.decode(payload));
    let text = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok());
    text.ok_or_else(|| Error::invalid("the payload of the envelope is no base64 of text"))
}

fn add_resources(
    truth: &mut Truth,
    resources: Rows<Resource>,
    subject: &Rows<Subject>,
) -> Result<()> {
    let mut root = Sha256::new();
    let mut other = 0u64;
    for resource in resources.0 {
        let bytes = unhex(&resource.digest)
            .ok_or_else(|| Error::invalid(format!("{} is no digest", quoted(&resource.digest))))?;
        root.update(bytes);
        let algorithm = match resource.algorithm.as_str() {
            "sha256" => Some(Algorithm::Sha256),
            "blake3" => Some(Algorithm::Blake3),
            _ => None,
        };
        let digest = algorithm.map(|a| FileDigest::new(a, &resource.digest)).transpose()?;
        other += u64::from(digest.is_none());
        let expected = Expected { digests: digest.into_iter().collect(), ..Expected::default() };
        truth.add(&resource.name, expected)?;
    }
    // The subject is the model: the digest over all digests in their order.
    let claimed = match subject.0.as_slice() {
        [one] => one.digest.sha256.as_deref(),
        _ => return Err(Error::invalid("a statement that is not about one model")),
    };
    if claimed.map(str::to_ascii_lowercase) != Some(hex(&root.finalize())) {
        return Err(Error::invalid("the digests of the bundle do not add up to its subject's"));
    }
    if other > 0 {
        truth.note(format!("{other} files are signed by other algorithms than SHA-256 and BLAKE3"));
        if truth.files.values().all(|e| e.digests.is_empty()) {
            return Err(unverifiable("the bundle holds no SHA-256 and no BLAKE3 digests"));
        }
    }
    Ok(())
}

fn add_subjects(truth: &mut Truth, subjects: Rows<Subject>) -> Result<()> {
    for subject in subjects.0 {
        let (Some(name), Some(sha256)) = (subject.name, subject.digest.sha256) else {
            return Err(Error::invalid("a subject without a name or a SHA-256 digest"));
        };
        let digests = vec![FileDigest::new(Algorithm::Sha256, &sha256)?];
        truth.add(&name, Expected { digests, ..Expected::default() })?;
    }
    Ok(())
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| match *pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        })
        .collect()
}
