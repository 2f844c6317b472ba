//! Element types of the safetensors format.

use serde::{Deserialize, Serialize};

macro_rules! dtypes {
    ($($variant:ident $name:literal $bits:literal $align:literal,)*) => {
        /// Element type as a safetensors header spells it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[allow(non_camel_case_types, missing_docs)]
        pub enum Dtype { $(#[serde(rename = $name)] $variant,)* }

        impl Dtype {
            /// All element types.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Name in a header, such as `BF16`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Size of one element in bits.
            pub fn bits(self) -> u64 {
                match self { $(Self::$variant => $bits,)* }
            }

            /// Bytes to which readers that view a file in place expect a tensor to be aligned.
            pub fn alignment(self) -> u64 {
                match self { $(Self::$variant => $align,)* }
            }
        }
    };
}

dtypes! {
    Bool "BOOL" 8 1,
    F4 "F4" 4 1,
    F6E2M3 "F6_E2M3" 6 1,
    F6E3M2 "F6_E3M2" 6 1,
    U8 "U8" 8 1,
    I8 "I8" 8 1,
    F8E5M2 "F8_E5M2" 8 1,
    F8E4M3 "F8_E4M3" 8 1,
    F8E8M0 "F8_E8M0" 8 1,
    F8E4M3Fnuz "F8_E4M3FNUZ" 8 1,
    F8E5M2Fnuz "F8_E5M2FNUZ" 8 1,
    I16 "I16" 16 2,
    U16 "U16" 16 2,
    F16 "F16" 16 2,
    BF16 "BF16" 16 2,
    I32 "I32" 32 4,
    U32 "U32" 32 4,
    F32 "F32" 32 4,
    C64 "C64" 64 8,
    F64 "F64" 64 8,
    I64 "I64" 64 8,
    U64 "U64" 64 8,
}

impl Dtype {
    /// Bytes of a tensor of `shape`, or `None` if that overflows or is no whole number of bytes.
    pub fn byte_len(self, shape: &[u64]) -> Option<u64> {
        let elements = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d))?;
        let bits = elements.checked_mul(self.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    /// Whether this is a floating type that quantisation reads (BF16, F16, F32).
    pub fn is_wide_float(self) -> bool {
        matches!(self, Self::BF16 | Self::F16 | Self::F32)
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
