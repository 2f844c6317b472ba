//! The fixed vocabulary: roles, the groups they are reported in, tensor-parallel axes.

use serde::{Deserialize, Serialize};

macro_rules! roles {
    ($($variant:ident $name:literal $group:ident,)*) => {
        /// What a tensor does in the model, the same word for every architecture.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[allow(missing_docs)]
        pub enum Role { $(#[serde(rename = $name)] $variant,)* }

        impl Role {
            /// All roles.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Name in architecture, dialect and target files, such as `expert.gate`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Row of the inspect table that counts this role.
            pub fn group(self) -> Group {
                match self { $(Self::$variant => Group::$group,)* }
            }
        }
    };
}

roles! {
    Embedding "embedding" Embeddings,
    Head "head" Head,
    NormInput "norm.input" Norms,
    NormPostAttention "norm.post_attention" Norms,
    NormFinal "norm.final" Norms,
    NormQuery "norm.query" Attention,
    NormKey "norm.key" Attention,
    AttentionQkv "attention.qkv" Attention,
    AttentionQ "attention.q" Attention,
    AttentionK "attention.k" Attention,
    AttentionV "attention.v" Attention,
    AttentionDense "attention.dense" Attention,
    AttentionQA "attention.q_a" Attention,
    AttentionQB "attention.q_b" Attention,
    AttentionQANorm "attention.q_a_norm" Attention,
    AttentionKvA "attention.kv_a" Attention,
    AttentionKvB "attention.kv_b" Attention,
    AttentionKvANorm "attention.kv_a_norm" Attention,
    MlpGate "mlp.gate" DenseMlp,
    MlpUp "mlp.up" DenseMlp,
    MlpDown "mlp.down" DenseMlp,
    RouterWeight "router.weight" Router,
    RouterBias "router.bias" Router,
    ExpertGate "expert.gate" RoutedExperts,
    ExpertUp "expert.up" RoutedExperts,
    ExpertDown "expert.down" RoutedExperts,
    SharedGate "shared.gate" SharedExperts,
    SharedUp "shared.up" SharedExperts,
    SharedDown "shared.down" SharedExperts,
    MtpEmbedNorm "mtp.embed_norm" Mtp,
    MtpHiddenNorm "mtp.hidden_norm" Mtp,
    MtpProj "mtp.proj" Mtp,
    MtpNorm "mtp.norm" Mtp,
    MtpHead "mtp.head" Mtp,
    MtpEmbedding "mtp.embedding" Mtp,
}

impl Role {
    /// Whether this is a matrix of a routed expert.
    pub fn is_routed_expert(self) -> bool {
        self.group() == Group::RoutedExperts
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Rows of the inspect table, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// Gate, up and down of routed experts, MTP layers included.
    RoutedExperts,
    /// Gate, up and down of shared experts, MTP layers included.
    SharedExperts,
    /// Projections of attention and the norms inside it.
    Attention,
    /// Feed-forward blocks of dense layers.
    DenseMlp,
    /// Router weight and bias.
    Router,
    /// Layer norms and the final norm.
    Norms,
    /// Token embeddings.
    Embeddings,
    /// Output head.
    Head,
    /// What only an MTP layer has; its attention and MoE block count in the groups above.
    Mtp,
}

impl Group {
    /// All groups, in the order of the table.
    pub const ALL: &[Self] = &[
        Self::RoutedExperts,
        Self::SharedExperts,
        Self::Attention,
        Self::DenseMlp,
        Self::Router,
        Self::Norms,
        Self::Embeddings,
        Self::Head,
        Self::Mtp,
    ];

    /// Words for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::RoutedExperts => "routed experts",
            Self::SharedExperts => "shared experts",
            Self::Attention => "attention",
            Self::DenseMlp => "dense mlp",
            Self::Router => "router",
            Self::Norms => "norms",
            Self::Embeddings => "embeddings",
            Self::Head => "head",
            Self::Mtp => "mtp",
        }
    }
}

/// How tensor parallelism of size t cuts a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// Rows (dimension 0) / t.
    Row,
    /// Columns (dimension 1) / t.
    Col,
    /// Rows are query heads: cut by whole heads.
    Head,
    /// Rows are [all Q | all K | all V]; each of the three by its heads.
    Qkv,
    /// Rows are KV heads: cut by head, replicated where t exceeds their number.
    Kv,
    /// Rows / t after padding the vocabulary.
    Vocab,
    /// Every rank holds the whole.
    Replicate,
}
