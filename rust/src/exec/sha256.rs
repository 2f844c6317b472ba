//! SHA-256 of two streams at a time.
//!
//! The SHA instructions of x86-64 take several cycles, and within one stream each round waits for
//! the one before; the rounds of a second stream fit between them. A core so hashes two streams at
//! nearly twice the rate of one. Whatever is not common to both, and any other CPU, is left to `sha2`.
//!
//! The definition is FIPS 180-4.

use sha2::block_api::compress256;

const BLOCK: usize = 64;
/// First words of the fractional parts of the square roots of the first eight primes.
const START: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// A running SHA-256.
#[derive(Debug, Clone)]
pub struct Stream {
    state: [u32; 8],
    /// The block that is being filled.
    tail: [u8; BLOCK],
    /// Bytes taken.
    length: u64,
}

impl Default for Stream {
    fn default() -> Self {
        Self { state: START, tail: [0; BLOCK], length: 0 }
    }
}

impl Stream {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let blocks = self.split(bytes);
        compress256(&mut self.state, blocks);
    }

    /// Takes the next bytes of two streams.
    pub fn update_two(one: (&mut Self, &[u8]), other: (&mut Self, &[u8])) {
        let ((one, first), (other, second)) = (one, other);
        let (first, second) = (one.split(first), other.split(second));
        let (first, rest) = first.split_at(first.len().min(second.len()));
        let (second, other_rest) = second.split_at(first.len());
        two(&mut one.state, &mut other.state, first, second);
        compress256(&mut one.state, rest);
        compress256(&mut other.state, other_rest);
    }

    /// The digest of everything taken.
    pub fn finish(mut self) -> [u8; 32] {
        let bits = self.length * 8;
        let filled = self.filled();
        let zeros = (2 * BLOCK - 9 - filled) % BLOCK;
        let mut padding = vec![0x80];
        padding.resize(1 + zeros, 0);
        padding.extend(bits.to_be_bytes());
        self.update(&padding);
        let mut digest = [0; 32];
        for (bytes, word) in digest.as_chunks_mut::<4>().0.iter_mut().zip(self.state) {
            *bytes = word.to_be_bytes();
        }
        digest
    }

    fn filled(&self) -> usize {
        (self.length % BLOCK as u64) as usize
    }

    /// Keeps what fills no block, and returns the blocks that are to be compressed next.
    fn split<'b>(&mut self, mut bytes: &'b [u8]) -> &'b [[u8; BLOCK]] {
        let filled = self.filled();
        self.length += bytes.len() as u64;
        if filled > 0 {
            let (head, rest) = bytes.split_at(bytes.len().min(BLOCK - filled));
            self.tail[filled..filled + head.len()].copy_from_slice(head);
            if filled + head.len() < BLOCK {
                return &[];
            }
            compress256(&mut self.state, &[self.tail]);
            bytes = rest;
        }
        let (blocks, tail) = bytes.as_chunks();
        self.tail[..tail.len()].copy_from_slice(tail);
        blocks
    }
}

/// Compresses as many blocks of one stream as of the other.
fn two(one: &mut [u32; 8], other: &mut [u32; 8], first: &[[u8; BLOCK]], second: &[[u8; BLOCK]]) {
    #[cfg(target_arch = "x86_64")]
    if x86::available() {
        let mut states = [*one, *other];
        // SAFETY: `available` has just found every feature that `compress` enables.
        #[allow(unsafe_code)]
        unsafe {
            x86::compress(&mut states, [first, second]);
        }
        [*one, *other] = states;
        return;
    }
    compress256(one, first);
    compress256(other, second);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_blend_epi16, _mm_loadu_si128, _mm_set_epi64x,
        _mm_setzero_si128, _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32,
        _mm_shuffle_epi8, _mm_shuffle_epi32, _mm_storeu_si128,
    };

    use super::BLOCK;

    /// Streams that are interleaved; three need more registers than there are.
    const STREAMS: usize = 2;
    /// First words of the fractional parts of the cube roots of the first 64 primes.
    #[rustfmt::skip]
    const ROUNDS: [[u32; 4]; 16] = [
        [0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5],
        [0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5],
        [0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3],
        [0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174],
        [0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc],
        [0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da],
        [0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7],
        [0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967],
        [0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13],
        [0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85],
        [0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3],
        [0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070],
        [0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5],
        [0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3],
        [0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208],
        [0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2],
    ];

    pub(super) fn available() -> bool {
        is_x86_feature_detected!("sha") && is_x86_feature_detected!("sse4.1")
    }

    #[inline]
    fn load<T>(from: &[T]) -> __m128i {
        assert!(size_of_val(from) >= size_of::<__m128i>());
        // SAFETY: the slice has at least the 16 bytes that are read, wherever they lie; any bytes
        // are a vector.
        #[allow(unsafe_code)]
        unsafe {
            _mm_loadu_si128(from.as_ptr().cast())
        }
    }

    #[inline]
    fn store(to: &mut [u32; 4], value: __m128i) {
        // SAFETY: the array has exactly the 16 bytes that are written, wherever it lies.
        #[allow(unsafe_code)]
        unsafe {
            _mm_storeu_si128(to.as_mut_ptr().cast(), value);
        }
    }

    /// Rounds `4 * I` to `4 * I + 3` of each stream; in a loop the words would go through memory.
    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn four<const I: usize>(
        words: &mut [[__m128i; 4]; STREAMS],
        abef: &mut [__m128i; STREAMS],
        cdgh: &mut [__m128i; STREAMS],
    ) {
        let constants = load(&ROUNDS[I]);
        for n in 0..STREAMS {
            let words = &mut words[n];
            if I >= 4 {
                // No closure: where it is not inlined, it lacks the features of this function.
                let (first, second) = (words[I % 4], words[(I + 1) % 4]);
                let (third, last) = (words[(I + 2) % 4], words[(I + 3) % 4]);
                let sum = _mm_sha256msg1_epu32(first, second);
                let sum = _mm_add_epi32(sum, _mm_alignr_epi8(last, third, 4));
                words[I % 4] = _mm_sha256msg2_epu32(sum, last);
            }
            let both = _mm_add_epi32(words[I % 4], constants);
            cdgh[n] = _mm_sha256rnds2_epu32(cdgh[n], abef[n], both);
            abef[n] = _mm_sha256rnds2_epu32(abef[n], cdgh[n], _mm_shuffle_epi32(both, 0x0E));
        }
    }

    /// Compresses the blocks of each stream, of which there are equally many, into its state.
    ///
    /// The instructions want the state's words as A B E F and C D G H, and do two rounds each.
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    pub(super) fn compress(states: &mut [[u32; 8]; STREAMS], blocks: [&[[u8; BLOCK]]; STREAMS]) {
        let swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        let mut abef = [_mm_setzero_si128(); STREAMS];
        let mut cdgh = abef;
        for n in 0..STREAMS {
            let cdab = _mm_shuffle_epi32(load(&states[n][..4]), 0xB1);
            let efgh = _mm_shuffle_epi32(load(&states[n][4..]), 0x1B);
            abef[n] = _mm_alignr_epi8(cdab, efgh, 8);
            cdgh[n] = _mm_blend_epi16(efgh, cdab, 0xF0);
        }
        for (first, second) in blocks[0].iter().zip(blocks[1]) {
            let before = (abef, cdgh);
            let mut words = [[_mm_setzero_si128(); 4]; STREAMS];
            for (words, block) in words.iter_mut().zip([first, second]) {
                for (word, bytes) in words.iter_mut().zip(block.as_chunks::<16>().0) {
                    *word = _mm_shuffle_epi8(load(bytes), swap);
                }
            }
            macro_rules! rounds {
                ($($i:literal)*) => { $(four::<$i>(&mut words, &mut abef, &mut cdgh);)* };
            }
            rounds!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
            for n in 0..STREAMS {
                abef[n] = _mm_add_epi32(abef[n], before.0[n]);
                cdgh[n] = _mm_add_epi32(cdgh[n], before.1[n]);
            }
        }
        for (n, state) in states.iter_mut().enumerate() {
            let feba = _mm_shuffle_epi32(abef[n], 0x1B);
            let dchg = _mm_shuffle_epi32(cdgh[n], 0xB1);
            let [low, high] = state.as_chunks_mut().0 else { continue };
            store(low, _mm_blend_epi16(feba, dchg, 0xF0));
            store(high, _mm_alignr_epi8(dchg, feba, 8));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    use super::*;

    /// Bytes that differ from block to block.
    fn bytes(seed: u8, length: usize) -> Vec<u8> {
        let mut word = u32::from(seed) | 1;
        let mut next = || {
            word ^= word << 13;
            word ^= word >> 17;
            word ^= word << 5;
            word as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn every_length_up_to_four_blocks() {
        for length in 0..=4 * BLOCK {
            let data = bytes(length as u8, length);
            let mut stream = Stream::default();
            stream.update(&data);
            assert_eq!(stream.finish()[..], Sha256::digest(&data)[..], "{length}");
        }
    }

    proptest! {
        #[test]
        fn two_streams_are_each_its_own(
            seed: u8,
            cuts in prop::collection::vec((0usize..700, 0usize..700, 0u8..4), 0..12),
        ) {
            let mut streams = (Stream::default(), Stream::default());
            let mut plain = (Sha256::new(), Sha256::new());
            for (i, (one, other, how)) in cuts.into_iter().enumerate() {
                let first = bytes(seed.wrapping_add(i as u8), one);
                let second = bytes(seed.wrapping_mul(7).wrapping_add(i as u8), other);
                let (one, other) = (&mut streams.0, &mut streams.1);
                if how == 0 {
                    one.update(&first);
                    other.update(&second);
                } else {
                    Stream::update_two((one, &first), (other, &second));
                }
                plain.0.update(&first);
                plain.1.update(&second);
            }
            prop_assert_eq!(&streams.0.finish()[..], &plain.0.finalize()[..]);
            prop_assert_eq!(&streams.1.finish()[..], &plain.1.finalize()[..]);
        }
    }

    #[test]
    fn a_million_letters() {
        let data = vec![b'a'; 1_000_000];
        let (mut one, mut other) = (Stream::default(), Stream::default());
        Stream::update_two((&mut one, &data), (&mut other, &data[1..]));
        let hex = crate::exec::hash::hex(&one.finish());
        assert_eq!(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
        assert_eq!(other.finish()[..], Sha256::digest(&data[1..])[..]);
    }
}
