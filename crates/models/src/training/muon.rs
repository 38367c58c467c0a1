use super::affine;
use pulid_graph::{Graph, NodeId, Rate};
use pulid_ops::{Activation, Binary, MatMul, Slice, SumOfSquares, Unary, WeightedSum};
use pulid_tensor::{HostTensor, Result, TensorType};

/// Coefficients of the quintic iteration, the number of iterations and the smallest norm that is divided by: Keller Jordan's
/// (<https://kellerjordan.github.io/posts/muon/>), which are `torch.optim.Muon`'s defaults.
const COEFFICIENTS: [f32; 3] = [3.4445, -4.7750, 2.0315];
const ITERATIONS: usize = 5;
const EPSILON: f32 = 1e-7;

/// How the rate follows a matrix's extents, `adjust_lr_fn` of `torch.optim.Muon`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MuonRate {
    /// `original`, Keller Jordan's: times √max(1, out / in).
    #[default]
    Original,
    /// `match_rms_adamw` (Liu et al., arXiv 2502.16982): times 0.2 √max(out, in), so that AdamW's rates and decays serve.
    MatchRmsAdamW,
}

impl MuonRate {
    /// The factor of the rate for a matrix [in, out].
    fn factor(self, [input, output]: [usize; 2]) -> f64 {
        let (input, output) = (input as f64, output as f64);
        match self {
            MuonRate::Original => (output / input).max(1.0).sqrt(),
            MuonRate::MatchRmsAdamW => 0.2 * output.max(input).sqrt(),
        }
    }
}

/// What a step of Muon is told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MuonStep {
    /// Learning rate, before it is adjusted to the matrix.
    pub rate: f32,
    /// How it is adjusted.
    pub adjust: MuonRate,
    /// Weight decay, decoupled.
    pub decay: f32,
    /// Decay of the momentum.
    pub momentum: f32,
    /// Factor of the gradient: what undoes the scale of the loss, and clips. 0 skips the step.
    pub factor: f32,
}

impl MuonStep {
    /// The inputs `momentum.weights` and `step.weights` of [`muon_graph`] for a matrix [in, out].
    pub fn inputs(self, shape: [usize; 2]) -> [(&'static str, HostTensor); 2] {
        let rate = f64::from(self.rate);
        let taken = [1.0 - rate * f64::from(self.decay), -rate * self.adjust.factor(shape)];
        let momentum = [f64::from(self.momentum), (1.0 - f64::from(self.momentum)) * f64::from(self.factor)];
        // Nothing of a skipped step's gradient is read: it may hold anything.
        let [momentum, taken] = if self.factor == 0.0 { [[1.0, 0.0]; 2] } else { [momentum, taken] };
        let tensor = |values: [f64; 2]| HostTensor::from_fn([2], |i| values[i] as f32);
        [("momentum.weights", tensor(momentum)), ("step.weights", tensor(taken))]
    }
}

/// One step of Muon (Jordan et al. 2024) with Nesterov's momentum for a matrix [in, out], as `torch.optim.Muon` computes it, but in f32
/// throughout, where PyTorch orthogonalises in bfloat16:
///
/// m' = μ m + (1 - μ) g; u = μ m' + (1 - μ) g; x = u / ‖u‖; five times A = x xᵀ, x = a x + (b A + c A A) x; p' = (1 - rate decay) p -
/// adjusted rate x.
///
/// Inputs, f32: `parameter`, `momentum` and `gradient` [in, out], and what [`MuonStep::inputs`] gives. Outputs: the next `parameter`
/// and `momentum`.
///
/// # Errors
/// When an extent is 0.
pub fn muon_graph(shape: [usize; 2]) -> Result<Graph> {
    let mut graph = Graph::new("muon");
    let g = &mut graph;
    let matrix = TensorType::f32(shape);
    let [parameter, momentum, gradient] =
        ["parameter", "momentum", "gradient"].map(|name| g.input(name, matrix.clone(), Rate::Step));
    let (parameter, momentum, gradient) = (parameter?, momentum?, gradient?);
    let by_momentum = g.input("momentum.weights", TensorType::f32([2]), Rate::Step)?;
    let by_step = g.input("step.weights", TensorType::f32([2]), Rate::Step)?;

    let momentum = g.scoped("momentum", |g| g.apply(WeightedSum, &[momentum, gradient, by_momentum]))?;
    // Nesterov's step ahead has the same weights.
    let update = g.scoped("update", |g| g.apply(WeightedSum, &[momentum, gradient, by_momentum]))?;
    let update = g.scoped("orthogonal", |g| orthogonal(g, update))?;
    let parameter = g.scoped("parameter", |g| g.apply(WeightedSum, &[parameter, update, by_step]))?;
    g.output("parameter", parameter)?;
    g.output("momentum", momentum)?;
    Ok(graph)
}

/// Newton-Schulz iterations towards the nearest matrix with orthogonal rows or columns. Products are taken on the shorter side, as
/// PyTorch does by transposing: of more rows than columns, A = xᵀ x stands on the right.
fn orthogonal(g: &mut Graph, x: NodeId) -> Result<NodeId> {
    let rows_are_fewer = g.shape(x)[0] <= g.shape(x)[1];
    let [a, b, c] = COEFFICIENTS;
    let squares = g.apply(SumOfSquares, &[x])?;
    let square = g.apply(Slice::along(g.shape(squares), 0, 0, 1), &[squares])?;
    let norm = g.apply(Unary(Activation::Sqrt), &[square])?;
    let norm = g.apply(Unary(Activation::Clamp(EPSILON, f32::MAX)), &[norm])?;
    let mut x = g.apply(Binary::div(), &[x, norm])?;
    for _ in 0..ITERATIONS {
        let gram = MatMul { transpose_a: !rows_are_fewer, transpose_b: rows_are_fewer, ..MatMul::default() };
        let gram = g.apply(gram, &[x, x])?;
        let scaled = affine(g, gram, b, 0.0)?;
        let squared = MatMul { alpha: c, residual: true, ..MatMul::default() };
        let polynomial = g.apply(squared, &[gram, gram, scaled])?;
        let scaled = affine(g, x, a, 0.0)?;
        let pair = if rows_are_fewer { [polynomial, x] } else { [x, polynomial] };
        x = g.apply(MatMul { residual: true, ..MatMul::default() }, &[pair[0], pair[1], scaled])?;
    }
    Ok(x)
}
