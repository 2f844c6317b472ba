//! Digests whose state can be journaled, so that a resumed run goes on hashing where it stopped.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize, Serializer};
use sha2::Sha256;
use sha2::digest::common::hazmat::SerializableState;
use xxhash_rust::xxh3::xxh3_128;

use crate::error::{Error, Result};

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Serialises a running SHA-256.
pub fn save_sha256(hash: &Sha256) -> String {
    BASE64.encode(hash.serialize())
}

/// Restores a running SHA-256 from [`save_sha256`].
pub fn load_sha256(text: &str) -> Result<Sha256> {
    let damaged = || Error::internal("damaged SHA-256 state in the journal");
    let bytes = BASE64.decode(text).map_err(|_| damaged())?;
    let state = bytes.as_slice().try_into().map_err(|_| damaged())?;
    Sha256::deserialize(state).map_err(|_| damaged())
}

/// An XXH3-128 digest; as text, 32 lower-case hexadecimal digits. Bytes, since a manifest has a
/// million of them, and a number would be aligned to sixteen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "Cow<'_, str>")]
pub struct Digest128([u8; 16]);

impl From<u128> for Digest128 {
    fn from(number: u128) -> Self {
        Self(number.to_be_bytes())
    }
}

impl fmt::Display for Digest128 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl FromStr for Digest128 {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let number = digits.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        number.map(Self::from).ok_or("no XXH3-128 digest")
    }
}

impl TryFrom<Cow<'_, str>> for Digest128 {
    type Error = &'static str;

    fn try_from(text: Cow<'_, str>) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl Serialize for Digest128 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

const STRIPE: usize = 64;
const BLOCK: usize = 1024;
const P32_1: u64 = 0x9E37_79B1;
const P32_2: u64 = 0x85EB_CA77;
const P32_3: u64 = 0xC2B2_AE3D;
const P64_1: u64 = 0x9E37_79B1_85EB_CA87;
const P64_2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const P64_3: u64 = 0x1656_67B1_9E37_79F9;
const P64_4: u64 = 0x85EB_CA77_C2B2_AE63;
const P64_5: u64 = 0x27D4_EB2F_1656_67C5;

/// The 192-byte default secret of XXH3.
const SECRET: [u8; 192] = [
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
];

/// Streaming XXH3-128 (seed 0) whose state can be saved; no library offers that.
///
/// Algorithm: the XXH3 specification, section "XXH3 Algorithm (for large inputs)". Blocks of
/// 1,024 bytes are folded into eight lanes as soon as a further byte is known to follow; up to one
/// block and the 64 bytes before it are kept, which is what the final step needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "SavedXxh3")]
pub struct Xxh3 {
    lanes: [u64; 8],
    pending: Vec<u8>,
    before: Vec<u8>,
    total: u64,
}

/// A state as it is read, before anybody knows whether it can be one.
#[derive(Deserialize)]
struct SavedXxh3 {
    lanes: [u64; 8],
    pending: Vec<u8>,
    before: Vec<u8>,
    total: u64,
}

impl TryFrom<SavedXxh3> for Xxh3 {
    type Error = &'static str;

    fn try_from(saved: SavedXxh3) -> std::result::Result<Self, Self::Error> {
        let SavedXxh3 { lanes, pending, before, total } = saved;
        let kept = total.checked_sub(1).map_or(0, |last| last % BLOCK as u64 + 1);
        let folded = if total > BLOCK as u64 { STRIPE } else { 0 };
        if (pending.len() as u64, before.len()) != (kept, folded) {
            return Err("no state of XXH3: its lengths are not those of so many bytes");
        }
        Ok(Self { lanes, pending, before, total })
    }
}

impl Default for Xxh3 {
    fn default() -> Self {
        Self {
            lanes: [P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1],
            pending: Vec::with_capacity(BLOCK),
            before: Vec::new(),
            total: 0,
        }
    }
}

impl Xxh3 {
    /// Appends bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.total += bytes.len() as u64;
        if self.pending.len() + bytes.len() > BLOCK && !self.pending.is_empty() {
            let (head, rest) = bytes.split_at(BLOCK - self.pending.len());
            self.pending.extend_from_slice(head);
            bytes = rest;
            let block = std::mem::take(&mut self.pending);
            self.fold_blocks(&block);
            self.pending = block;
            self.pending.clear();
        }
        let whole = bytes.len().saturating_sub(1) / BLOCK * BLOCK;
        let (blocks, rest) = bytes.split_at(whole);
        self.fold_blocks(blocks);
        bytes = rest;
        self.pending.extend_from_slice(bytes);
    }

    /// The digest of everything appended so far.
    pub fn digest(&self) -> Digest128 {
        if self.total <= 240 {
            return xxh3_128(&self.pending).into();
        }
        let mut lanes = self.lanes;
        let stripes = (self.pending.len() - 1) / STRIPE;
        for (n, stripe) in self.pending.chunks_exact(STRIPE).take(stripes).enumerate() {
            accumulate(&mut lanes, stripe, &SECRET[n * 8..]);
        }
        let mut end = self.before.clone();
        end.extend_from_slice(&self.pending);
        accumulate(&mut lanes, &end[end.len() - STRIPE..], &SECRET[192 - STRIPE - 7..]);
        let low = merge(&lanes, &SECRET[11..], self.total.wrapping_mul(P64_1));
        let high = merge(&lanes, &SECRET[192 - STRIPE - 11..], !self.total.wrapping_mul(P64_2));
        (u128::from(high) << 64 | u128::from(low)).into()
    }

    /// Folds whole blocks, behind which a further byte is known to follow.
    fn fold_blocks(&mut self, blocks: &[u8]) {
        let Some((_, end)) = blocks.split_last_chunk::<STRIPE>() else { return };
        self.lanes = fold(self.lanes, blocks);
        self.before.clear();
        self.before.extend_from_slice(end);
    }
}

/// Folds whole blocks into the lanes. Compiled for the baseline: its multiplication of two 32-bit halves
/// is all that this needs, and with AVX-512 compilers choose one of 64 bits, five times slower in all.
fn fold(mut lanes: [u64; 8], blocks: &[u8]) -> [u64; 8] {
    let key = eight_words(&SECRET[192 - STRIPE..]);
    for block in blocks.chunks_exact(BLOCK) {
        for (n, stripe) in block.chunks_exact(STRIPE).enumerate() {
            accumulate(&mut lanes, stripe, &SECRET[n * 8..]);
        }
        for i in 0..8 {
            lanes[i] = (lanes[i] ^ (lanes[i] >> 47) ^ key[i]).wrapping_mul(P32_1);
        }
    }
    lanes
}

/// Little-endian words of a slice.
fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word))
}

/// Eight little-endian words from the start of a slice. Arrays of fixed size are what the compiler
/// turns into vector code.
fn eight_words(bytes: &[u8]) -> [u64; 8] {
    let stored = bytes.as_chunks::<8>().0;
    let mut words = [0; 8];
    for i in 0..8 {
        words[i] = u64::from_le_bytes(stored[i]);
    }
    words
}

fn accumulate(lanes: &mut [u64; 8], stripe: &[u8], secret: &[u8]) {
    let (data, key) = (eight_words(&stripe[..STRIPE]), eight_words(&secret[..STRIPE]));
    for i in 0..8 {
        let mixed = data[i] ^ key[i];
        let product = (mixed & 0xffff_ffff).wrapping_mul(mixed >> 32);
        lanes[i] = lanes[i].wrapping_add(product).wrapping_add(data[i ^ 1]);
    }
}

fn merge(lanes: &[u64; 8], secret: &[u8], start: u64) -> u64 {
    let mixed: Vec<u64> = lanes.iter().zip(words(secret)).map(|(lane, key)| lane ^ key).collect();
    let sum = mixed.as_chunks::<2>().0.iter().fold(start, |sum, [a, b]| {
        let product = u128::from(*a) * u128::from(*b);
        sum.wrapping_add(product as u64 ^ (product >> 64) as u64)
    });
    let mixed = (sum ^ (sum >> 37)).wrapping_mul(0x1656_6791_9E37_79F9);
    mixed ^ (mixed >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sha2::Digest;

    proptest! {
        #[test]
        fn xxh3_equals_the_library_at_any_split_and_across_a_restart(
            length in prop_oneof![0usize..300, 900usize..1200, 0usize..20_000],
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
            salt in any::<u8>(),
        ) {
            let bytes: Vec<u8> = (0..length).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] ^ salt).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(length + 1)).collect();
            cuts.extend([0, length]);
            cuts.sort_unstable();
            let mut hash = Xxh3::default();
            for pair in cuts.windows(2) {
                hash.update(&bytes[pair[0]..pair[1]]);
                hash = serde_json::from_str(&serde_json::to_string(&hash).unwrap()).unwrap();
            }
            prop_assert_eq!(hash.digest(), Digest128::from(xxh3_128(&bytes)));
        }
    }

    #[test]
    fn what_is_no_state_is_not_restored() {
        let mut hash = Xxh3::default();
        hash.update(&[7; 3000]);
        let saved = serde_json::to_value(&hash).unwrap();
        assert_eq!(serde_json::from_value::<Xxh3>(saved.clone()).unwrap(), hash);
        let others = [
            ("pending", serde_json::json!([])),
            ("pending", serde_json::json!(vec![7; BLOCK + 1])),
            ("before", serde_json::json!([7])),
            ("total", serde_json::json!(u64::MAX)),
            ("total", serde_json::json!(0)),
            ("lanes", serde_json::json!([1, 2])),
        ];
        for (field, value) in others {
            let mut other = saved.clone();
            other[field] = value;
            assert!(serde_json::from_value::<Xxh3>(other).is_err(), "{field}");
        }
    }

    #[test]
    fn sha256_goes_on_after_a_restart() {
        let bytes: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
        let mut hash = Sha256::new();
        hash.update(&bytes[..333]);
        let mut hash = load_sha256(&save_sha256(&hash)).unwrap();
        hash.update(&bytes[333..]);
        assert_eq!(hash.finalize(), Sha256::digest(&bytes));
        assert!(load_sha256("AAAA").is_err());
    }
}
