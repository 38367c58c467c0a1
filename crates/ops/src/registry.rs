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

/// The operators, by family.
pub static OPERATORS: &[OperatorInfo] = &[
    // matmul
    MatMul::INFO,
    // conv
    Conv2d::INFO,
    // resample
    MaxPool2d::INFO,
    AveragePool2d::INFO,
    Resize2d::INFO,
    UpsampleNearest::INFO,
    // elementwise
    Unary::INFO,
    Pointwise::INFO,
    Binary::INFO,
    Select::INFO,
    GeGlu::INFO,
    SwiGlu::INFO,
    PRelu::INFO,
    Cast::INFO,
    TimeEmbedding::INFO,
    // norm
    LayerNorm::INFO,
    GroupNorm::INFO,
    GroupStatistics::INFO,
    GroupApply::INFO,
    BatchNorm::INFO,
    Softmax::INFO,
    L2Normalize::INFO,
    Reduce::INFO,
    // attention
    Attention::INFO,
    IdentityProjection::INFO,
    Rotary::INFO,
    // movement
    Concat::INFO,
    Slice::INFO,
    Pad::INFO,
    Permute::INFO,
    Gather::INFO,
    Expand::INFO,
];
