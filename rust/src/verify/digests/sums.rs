//! Checksum files: GNU coreutils (`HEX  NAME`), BSD and openssl (`SHA256 (NAME) = HEX`), b3sum.

use std::path::Path;

use super::{Algorithm, Expected, FileDigest, Kind, Truth, quoted, unverifiable};
use crate::error::{Error, Result};

/// How the comment begins by which lingconv marks sums of its own output.
const SELF_ATTESTED: &str = "# self-attested";

/// Parses a checksum file. Lines without a tag are BLAKE3 if the file's name says so.
pub(super) fn parse(text: &str, origin: &str) -> Result<Truth> {
    let file = Path::new(origin).file_name().map(|n| n.to_string_lossy().into_owned());
    let file = file.unwrap_or_default();
    let lower = file.to_ascii_lowercase();
    let blake3 = lower.starts_with("b3") || lower.contains(".b3") || lower.contains("blake3");
    let untagged = if blake3 { Algorithm::Blake3 } else { Algorithm::Sha256 };
    let mut truth = Truth::new(Kind::Sums, origin);
    let (mut unsupported, mut lists_itself) = (0u64, false);
    for (number, line) in (1u64..).zip(text.lines()) {
        if line.starts_with(SELF_ATTESTED) {
            truth.self_attested = true;
        }
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let at_line = |e: Error| Error { message: format!("line {number}: {}", e.message), ..e };
        let Some(line) = Line::parse(line, untagged).map_err(at_line)? else {
            unsupported += 1;
            continue;
        };
        if line.name == file {
            lists_itself = true;
            continue;
        }
        let digest = FileDigest::new(line.algorithm, line.hex).map_err(at_line)?;
        let expected = Expected { digests: vec![digest], ..Expected::default() };
        truth.add(&line.name, expected).map_err(at_line)?;
    }
    if lists_itself {
        truth.note(format!("{file} lists itself, which it cannot do truthfully; not checked"));
    }
    if unsupported > 0 {
        truth.note(format!("{unsupported} lines of other algorithms than SHA-256 and BLAKE3"));
        if truth.files.is_empty() {
            return Err(unverifiable("no SHA-256 and no BLAKE3 digests in it"));
        }
    }
    Ok(truth)
}

struct Line<'a> {
    algorithm: Algorithm,
    hex: &'a str,
    name: String,
}

impl<'a> Line<'a> {
    /// One line; `None` if it is well-formed, but of an algorithm that is not computed here.
    fn parse(line: &'a str, untagged: Algorithm) -> Result<Option<Self>> {
        // A leading backslash says that the name is escaped.
        let (escaped, body) = match line.strip_prefix('\\') {
            Some(rest) => (true, rest),
            None => (false, line),
        };
        let malformed = || Error::invalid(format!("no line of a checksum file: {}", quoted(line)));
        let (algorithm, hex, name) = if let Some((tag, name, hex)) = tagged(body) {
            match tag {
                "SHA256" | "SHA2-256" => (Algorithm::Sha256, hex, name),
                "BLAKE3" => (Algorithm::Blake3, hex, name),
                _ => return Ok(None),
            }
        } else {
            let (hex, name) = body.split_once(' ').ok_or_else(malformed)?;
            // The second column is a space for text and a star for binary mode.
            (untagged, hex, name.strip_prefix([' ', '*']).unwrap_or(name))
        };
        let name = if escaped { unescape(name).ok_or_else(malformed)? } else { name.to_owned() };
        // `sha256sum ./*` and `find .` write it; the name means the same without.
        let name = name.strip_prefix("./").map(str::to_owned).unwrap_or(name);
        Ok(Some(Self { algorithm, hex, name }))
    }
}

/// Parts of `TAG (NAME) = HEX`; openssl leaves out the spaces.
fn tagged(line: &str) -> Option<(&str, &str, &str)> {
    let (tag, rest) = line.split_once('(')?;
    let tag = tag.strip_suffix(' ').unwrap_or(tag);
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'/');
    if tag.is_empty() || !tag.bytes().all(plain) {
        return None;
    }
    let (name, hex) = rest.rsplit_once(')')?;
    let hex = hex.strip_prefix(' ').unwrap_or(hex).strip_prefix("= ")?;
    Some((tag, name, hex))
}

/// Undoes the escapes of GNU coreutils; `None` for an unknown one.
fn unescape(name: &str) -> Option<String> {
    let mut plain = String::with_capacity(name.len());
    let mut chars = name.chars();
    while let Some(c) = chars.next() {
        plain.push(match c {
            '\\' => match chars.next()? {
                '\\' => '\\',
                'n' => '\n',
                'r' => '\r',
                _ => return None,
            },
            c => c,
        });
    }
    Some(plain)
}
