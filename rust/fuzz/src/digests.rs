//! Lists of digests of every form: sums, listings of the hubs, manifests, signing bundles,
//! git-lfs pointers, and what a download leaves in a folder.
//!
//! The input is a list, read in each form that it may have, or a folder (see [`crate::folder`]).
//! What is read names files inside the folder alone, and digests that could be some.

use lingconv_core::io::Root;
use lingconv_core::io::root::check_name;
use lingconv_core::verify::digests::{Expected, Kind, MAX_FILES, Truth, detect, parse};

use crate::{folder, sound};

const KINDS: [Kind; 7] = [
    Kind::Sums,
    Kind::HubListing,
    Kind::HubLocal,
    Kind::ModelScope,
    Kind::Manifest,
    Kind::Signing,
    Kind::Lfs,
];

/// Checks one input.
///
/// # Panics
/// If a law does not hold.
pub fn check(data: &[u8]) {
    let files = folder::files(data);
    if !files.is_empty() {
        let place = folder::scratch();
        folder::write(place.path(), &files);
        let root = sound(Root::open(place.path()));
        let found = root.and_then(|root| sound(detect(&root)));
        found.unwrap_or_default().iter().for_each(holds);
        return;
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    for origin in ["SHA256SUMS", "B3SUMS"] {
        sound(parse(text, origin, None)).iter().for_each(holds);
    }
    for kind in KINDS {
        sound(parse(text, "list", Some(kind))).iter().for_each(holds);
    }
}

fn holds(truth: &Truth) {
    assert!(truth.files.len() <= MAX_FILES);
    for (name, expected) in &truth.files {
        assert!(check_name(name).is_ok(), "{name:?} may lie outside the folder");
        check_digests(expected);
    }
}

fn check_digests(expected: &Expected) {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    for (at, digest) in expected.digests.iter().enumerate() {
        assert_eq!(digest.hex.len(), digest.algorithm.hex_len());
        assert!(digest.hex.bytes().all(digit), "{digest:?}");
        let again = expected.digests[..at].iter().any(|d| d.algorithm == digest.algorithm);
        assert!(!again, "two digests of {}", digest.algorithm);
    }
    let mut reached = 0;
    for tensor in &expected.tensors {
        assert!(tensor.begin >= reached && tensor.begin <= tensor.end, "{tensor:?}");
        reached = tensor.end;
    }
}
