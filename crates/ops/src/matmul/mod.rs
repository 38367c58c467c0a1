//! Matrix products.

#[expect(clippy::module_inception, reason = "a family and its one operator share the field's name")]
mod matmul;
mod transposed;

pub use matmul::MatMul;
pub(crate) use matmul::product_on_cpu;

use pulid_tensor::BLOCK;

/// Elements of a matrix from which on zeros around it pay: with less work the copies of activations cost as much as they save.
const WORTH_PADDING: usize = 1 << 16;

/// Largest extent that is padded. No network has one beyond it, but a hostile configuration may, and its weights are missing.
const LARGEST_PADDED: usize = 1 << 24;

/// Rows and columns of a shared right operand [k, n] with zeros around it, where the tiled kernels cannot read its own, such as EVA02's 2,730
/// hidden channels: they read rows and columns in fours, and quantised rows in blocks. `None` where they can or where it is too
/// small to gain.
pub fn padded_matrix(k: usize, n: usize) -> Option<[usize; 2]> {
    let odd = !k.is_multiple_of(4) || !n.is_multiple_of(4);
    let real = k.max(n) <= LARGEST_PADDED && k.saturating_mul(n) >= WORTH_PADDING;
    let rows = if k.is_multiple_of(4) { k } else { k.next_multiple_of(BLOCK) };
    (odd && real).then(|| [rows, n.next_multiple_of(4)])
}
