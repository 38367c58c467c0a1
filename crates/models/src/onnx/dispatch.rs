//! From a node's operator to what adds it to the graph.

use super::builder::Builder;
use super::call::Call;
use super::fold::{self, Logic, Order};
use super::pointwise::Scalar;
use super::reduce::Reducer;
use super::value::Value;
use super::{convolution, linear, movement, norm, pointwise, pool, reduce, reorder, resize};
use pulid_ops::{Activation, BinaryFunction, Function};
use pulid_tensor::Result;

/// Every operator that is understood.
pub(super) const OPERATORS: &[&str] = &[
    "Abs",
    "Add",
    "And",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "CastLike",
    "Ceil",
    "Celu",
    "Clip",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "ConvTranspose",
    "Cos",
    "CumSum",
    "DepthToSpace",
    "Div",
    "Dropout",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Expand",
    "Flatten",
    "Floor",
    "Gather",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "Greater",
    "GreaterOrEqual",
    "GroupNormalization",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "InstanceNormalization",
    "LRN",
    "LayerNormalization",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "LogSoftmax",
    "LpNormalization",
    "LpPool",
    "MatMul",
    "Max",
    "MaxPool",
    "Mean",
    "MeanVarianceNormalization",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "PRelu",
    "Pad",
    "Pow",
    "RMSNormalization",
    "Range",
    "Reciprocal",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "Relu",
    "Reshape",
    "Resize",
    "Round",
    "Selu",
    "Shape",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Size",
    "Slice",
    "Softmax",
    "Softplus",
    "Softsign",
    "SpaceToDepth",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Swish",
    "Tanh",
    "ThresholdedRelu",
    "Tile",
    "Transpose",
    "Unsqueeze",
    "Upsample",
    "Where",
    "Xor",
];

/// Adds a node; its results in the file's order.
pub(super) fn dispatch<'a>(b: &mut Builder<'a>, call: &Call<'a>) -> Result<Vec<Value>> {
    let node = call.node;
    if !node.domain.is_empty() {
        let detail = format!("operators of domain `{}` are not supported; export with the standard's own", node.domain);
        return Err(call.error(detail));
    }
    match node.op_type.as_str() {
        "BatchNormalization" => norm::batch_norm(b, call),
        "LayerNormalization" => norm::layer_norm(b, call),
        "Split" => reorder::split(b, call),
        _ => single(b, call).map(|value| vec![value]),
    }
}

/// A node of one result.
fn single<'a>(b: &mut Builder<'a>, call: &Call<'a>) -> Result<Value> {
    if let Some(f) = scalar(call)? {
        return pointwise::unary(b, call, f);
    }
    match call.node.op_type.as_str() {
        "Conv" => convolution::conv(b, call),
        "ConvTranspose" => convolution::conv_transpose(b, call),
        "MaxPool" => pool::max_pool(b, call),
        "AveragePool" => pool::average_pool(b, call),
        "LpPool" => pool::lp_pool(b, call),
        "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" => reduce::global_pool(b, call),
        "Resize" => resize::resize(b, call),
        "Upsample" => resize::upsample(b, call),
        "DepthToSpace" => reorder::depth_to_space(b, call),
        "SpaceToDepth" => reorder::space_to_depth(b, call),
        "InstanceNormalization" => norm::instance_norm(b, call),
        "GroupNormalization" => norm::group_norm(b, call),
        "RMSNormalization" => norm::rms_norm(b, call),
        "MeanVarianceNormalization" => norm::mean_variance_norm(b, call),
        "LpNormalization" => norm::lp_norm(b, call),
        "LRN" => norm::local_response_norm(b, call),
        "PRelu" => pointwise::prelu(b, call),
        "Clip" => pointwise::clip(b, call),
        "Softmax" | "LogSoftmax" => pointwise::softmax(b, call),
        "Add" => pointwise::binary(b, call, BinaryFunction::Add),
        "Sub" => pointwise::binary(b, call, BinaryFunction::Sub),
        "Mul" => pointwise::binary(b, call, BinaryFunction::Mul),
        "Div" => pointwise::binary(b, call, BinaryFunction::Div),
        "Pow" => pointwise::binary(b, call, BinaryFunction::Pow),
        "Max" => pointwise::several(b, call, BinaryFunction::Max),
        "Min" => pointwise::several(b, call, BinaryFunction::Min),
        "Sum" | "Mean" => pointwise::several(b, call, BinaryFunction::Add),
        "ReduceMean" => reduce::reduce(b, call, Reducer::Mean),
        "ReduceSum" => reduce::reduce(b, call, Reducer::Sum),
        "ReduceMax" => reduce::reduce(b, call, Reducer::Max),
        "ReduceMin" => reduce::reduce(b, call, Reducer::Min),
        "ReduceProd" => reduce::reduce(b, call, Reducer::Product),
        "ReduceL1" => reduce::reduce(b, call, Reducer::L1),
        "ReduceL2" => reduce::reduce(b, call, Reducer::L2),
        "ReduceSumSquare" => reduce::reduce(b, call, Reducer::SumSquare),
        "ReduceLogSum" => reduce::reduce(b, call, Reducer::LogSum),
        "ReduceLogSumExp" => reduce::reduce(b, call, Reducer::LogSumExp),
        "Gemm" => linear::gemm(b, call),
        "MatMul" => linear::matmul(b, call),
        "Flatten" => movement::flatten(b, call),
        "Reshape" => movement::reshape(b, call),
        "Transpose" => movement::transpose(b, call),
        "Concat" => movement::concat(b, call),
        "Slice" => movement::slice(b, call),
        "Gather" => movement::gather(b, call),
        "Unsqueeze" => movement::unsqueeze(b, call),
        "Squeeze" => movement::squeeze(b, call),
        "Pad" => reorder::pad(b, call),
        "Expand" => reorder::expand(b, call),
        "Tile" => reorder::tile(b, call),
        "Shape" => fold::shape(b, call),
        "Size" => fold::size(b, call),
        "Range" => fold::range(b, call),
        "ConstantOfShape" => fold::constant_of_shape(b, call),
        "CumSum" => fold::cumulative_sum(b, call),
        "Mod" => fold::modulo(b, call),
        "Where" => fold::choose(b, call),
        "Equal" => fold::compare(b, call, Order::Equal),
        "Less" => fold::compare(b, call, Order::Less),
        "LessOrEqual" => fold::compare(b, call, Order::LessOrEqual),
        "Greater" => fold::compare(b, call, Order::Greater),
        "GreaterOrEqual" => fold::compare(b, call, Order::GreaterOrEqual),
        "And" => fold::logic(b, call, Logic::And),
        "Or" => fold::logic(b, call, Logic::Or),
        "Xor" => fold::logic(b, call, Logic::Xor),
        "Not" => fold::not(b, call),
        "Cast" | "CastLike" => fold::cast(b, call),
        "Constant" => fold::constant(call).map(Value::Constant),
        "Identity" => {
            call.known(&[])?;
            b.value(call, 0)
        }
        "Dropout" => {
            call.known(&["ratio", "seed", "is_test"])?;
            let training = b.constant(call, 2)?;
            let training = training.is_some_and(|c| c.ints(call).map_or(true, |v| v.iter().any(|&v| v != 0)));
            let nothing = b.constant(call, 1)?.is_some_and(|c| c.floats(call).is_ok_and(|v| v == [0.0]));
            if training && !nothing {
                return Err(call.error("training mode is not supported; export the network in evaluation mode"));
            }
            b.value(call, 0)
        }
        other => {
            let detail = format!("operator {other} is not supported; docs/onnx.md lists those that are");
            Err(call.error(detail))
        }
    }
}

/// The function of a node that computes each element of its first operand on its own.
fn scalar(call: &Call) -> Result<Option<Scalar>> {
    let float = |name: &str, default: f32| Ok::<f32, pulid_tensor::Error>(call.float(name)?.unwrap_or(default));
    let plain = |f: Scalar| call.known(&[]).map(|()| Some(f));
    let only = |names: &[&str], f: Scalar| call.known(names).map(|()| Some(f));
    use Scalar::{Activation as A, Function as F};
    match call.node.op_type.as_str() {
        "Relu" => plain(A(Activation::Relu)),
        "Sigmoid" => plain(A(Activation::Sigmoid)),
        "Tanh" => plain(A(Activation::Tanh)),
        "Exp" => plain(A(Activation::Exp)),
        "Sqrt" => plain(A(Activation::Sqrt)),
        "Neg" => plain(A(Activation::Neg)),
        "Abs" => plain(A(Activation::Abs)),
        "Reciprocal" => plain(A(Activation::Reciprocal)),
        "Erf" => plain(F(Function::Erf)),
        "Log" => plain(F(Function::Log)),
        "Floor" => plain(F(Function::Floor)),
        "Ceil" => plain(F(Function::Ceil)),
        "Round" => plain(F(Function::Round)),
        "Sign" => plain(F(Function::Sign)),
        "Sin" => plain(F(Function::Sin)),
        "Cos" => plain(F(Function::Cos)),
        "Softplus" => plain(F(Function::Softplus)),
        "Softsign" => plain(F(Function::Softsign)),
        "Mish" => plain(F(Function::Mish)),
        "HardSwish" => plain(F(Function::HardSwish)),
        "LeakyRelu" => only(&["alpha"], A(Activation::LeakyRelu(float("alpha", 0.01)?))),
        "HardSigmoid" => only(&["alpha", "beta"], F(Function::HardSigmoid(float("alpha", 0.2)?, float("beta", 0.5)?))),
        "Elu" => only(&["alpha"], F(Function::Elu(float("alpha", 1.0)?, 1.0))),
        "Selu" => {
            let (alpha, gamma) = (float("alpha", 1.673_263_2)?, float("gamma", 1.050_701)?);
            only(&["alpha", "gamma"], F(Function::Elu(alpha, gamma)))
        }
        "Celu" => match float("alpha", 1.0)? {
            0.0 => Err(call.unsupported("alpha", 0)),
            alpha => only(&["alpha"], F(Function::Celu(alpha))),
        },
        "Swish" => match float("alpha", 1.0)? {
            1.0 => only(&["alpha"], A(Activation::Silu)),
            alpha => only(&["alpha"], F(Function::Swish(alpha))),
        },
        "ThresholdedRelu" => only(&["alpha"], F(Function::Threshold(float("alpha", 1.0)?))),
        "Shrink" => only(&["bias", "lambd"], F(Function::Shrink(float("lambd", 0.5)?, float("bias", 0.0)?))),
        "Gelu" => match call.text("approximate", "none")? {
            "none" => only(&["approximate"], A(Activation::Gelu)),
            "tanh" => only(&["approximate"], F(Function::GeluTanh)),
            other => Err(call.unsupported("approximate", other)),
        },
        _ => Ok(None),
    }
}
