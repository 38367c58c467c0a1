//! Every operator, one line each.

use crate::*;

/// What the project knows of an operator: its shaders and its cases.
#[derive(Clone, Copy, Debug)]
pub struct OperatorInfo {
    /// Operator name.
    pub name: &'static str,
    /// One sentence for the operator table.
    pub summary: &'static str,
    /// The shaders it lowers to; relatives may share one.
    pub shaders: &'static [&'static str],
    /// Its cases.
    pub cases: fn() -> Vec<Case>,
}

/// Operators that belong together: a folder of shaders and a module of this crate.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Name of the folder and the module.
    pub name: &'static str,
    /// Its operators.
    pub operators: &'static [OperatorInfo],
}

/// The operators, by family.
pub static FAMILIES: &[Family] = &[
    Family { name: "matmul", operators: &[MatMul::INFO] },
    Family { name: "conv", operators: &[Conv2d::INFO, Conv2dGradient::INFO] },
    Family {
        name: "resample",
        operators: &[
            MaxPool2d::INFO,
            AveragePool2d::INFO,
            Resize2d::INFO,
            UpsampleNearest::INFO,
            AffineSample::INFO,
            AffineSampleGradient::INFO,
        ],
    },
    Family {
        name: "elementwise",
        operators: &[
            Unary::INFO,
            ActivationGradient::INFO,
            Pointwise::INFO,
            Binary::INFO,
            Select::INFO,
            GeGlu::INFO,
            GeGluGradient::INFO,
            SwiGlu::INFO,
            PRelu::INFO,
            PReluGradient::INFO,
            Cast::INFO,
            TimeEmbedding::INFO,
            TimeEmbeddingGradient::INFO,
        ],
    },
    Family {
        name: "norm",
        operators: &[
            LayerNorm::INFO,
            LayerNormGradient::INFO,
            GroupNorm::INFO,
            GroupNormGradient::INFO,
            GroupStatistics::INFO,
            GroupApply::INFO,
            BatchNorm::INFO,
            Softmax::INFO,
            SoftmaxGradient::INFO,
            L2Normalize::INFO,
            L2NormalizeGradient::INFO,
            Reduce::INFO,
        ],
    },
    Family {
        name: "attention",
        operators: &[
            Attention::INFO,
            AttentionLogSum::INFO,
            HeadDot::INFO,
            AttentionQueryGradient::INFO,
            AttentionKeyValueGradient::INFO,
            IdentityProjection::INFO,
            IdentityProjectionGradient::INFO,
            IdentityScoreGradient::INFO,
            Rotary::INFO,
        ],
    },
    Family {
        name: "movement",
        operators: &[Concat::INFO, Slice::INFO, Pad::INFO, Permute::INFO, Gather::INFO, Expand::INFO],
    },
    Family { name: "optimizer", operators: &[AdamW::INFO, SumOfSquares::INFO, WeightedSum::INFO] },
];

/// Every operator with its family.
pub fn operators() -> impl Iterator<Item = (&'static Family, &'static OperatorInfo)> {
    FAMILIES.iter().flat_map(|family| family.operators.iter().map(move |info| (family, info)))
}
