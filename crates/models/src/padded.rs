//! Linear layers whose extents the tiled kernels cannot read, such as EVA02's 2,730 hidden channels: computed with zeros around
//! the weight, which change nothing but the speed.

use crate::Vars;
use crate::layers::slice;
use crate::vars::transpose;
use pulid_graph::{Graph, NodeId};
use pulid_ops::{MatMul, Pad};
use pulid_tensor::{BLOCK, DType, HostTensor, Result, Shape, TensorType};

/// Columns are read in fours, rows in fours and in quantised weights in blocks.
fn padded(extent: usize, unit: usize) -> usize {
    if extent.is_multiple_of(4) { extent } else { extent.next_multiple_of(unit) }
}

impl Vars {
    /// Whether a linear layer from k to n channels is worth padding: with less work the copies cost as much.
    pub(crate) fn pads(k: usize, n: usize) -> bool {
        // Extents beyond any network come from a hostile configuration, whose weight is then reported as missing.
        let real = |extent: usize| extent <= 1 << 24;
        (!k.is_multiple_of(4) || !n.is_multiple_of(4)) && real(k) && real(n) && k * n >= 1 << 16
    }

    /// x [.., k] to [.., n] by `weight` and, where `bias` is set, `bias` of this module.
    pub(crate) fn padded_linear(&self, g: &mut Graph, x: NodeId, n: usize, bias: bool) -> Result<NodeId> {
        let shape = g.shape(x).clone();
        let (rank, k) = (shape.rank(), shape.last());
        let (rows, columns) = (padded(k, BLOCK), padded(n, 4));
        let stored = Shape::from([n, k]);
        let dtype = self.product_dtype("weight", &stored, &Shape::from([rows, columns]))?;
        let weight = self.computed(
            g,
            "weight",
            &["weight"],
            "transposed, padded",
            TensorType::new(dtype, [rows, columns]),
            move |vs| {
                let matrix = transpose(&vs.tensor("weight", [n, k])?.into_dtype(DType::F32))?;
                extend(&matrix, [rows, columns])
            },
        );
        let mut operands = vec![x, weight];
        if rows > k {
            let mut after = vec![0; rank];
            after[rank - 1] = rows - k;
            operands[0] = g.apply(Pad::zeros(vec![0; rank], after), &[x])?;
        }
        if bias {
            self.expect("bias", &Shape::from([n]))?;
            operands.push(self.computed(g, "bias", &["bias"], "padded", TensorType::f32([columns]), move |vs| {
                let mut values = vs.tensor("bias", [n])?.to_f32_vec();
                values.resize(columns, 0.0);
                HostTensor::from_f32([columns], values)
            }));
        }
        let y = g.apply(MatMul { bias, ..MatMul::default() }, &operands)?;
        if columns == n { Ok(y) } else { slice(g, y, rank - 1, 0, n) }
    }
}

/// A matrix with zeros below and to the right.
fn extend(matrix: &HostTensor, [rows, columns]: [usize; 2]) -> Result<HostTensor> {
    let width = matrix.shape().last();
    let mut values = Vec::with_capacity(rows * columns);
    for row in matrix.as_f32()?.chunks_exact(width) {
        values.extend_from_slice(row);
        values.resize(values.len() + columns - width, 0.0);
    }
    values.resize(rows * columns, 0.0);
    HostTensor::from_f32([rows, columns], values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Precision;
    use pulid_checkpoint::{Checkpoint, MemorySource, safetensors};
    use pulid_graph::{Rate, reference};
    use std::collections::{BTreeMap, HashMap};
    use std::sync::Arc;

    #[test]
    fn padding_changes_nothing() {
        let (k, n) = (331, 270);
        let weight = HostTensor::from_fn([n, k], |i| ((i * 31) % 97) as f32 / 48.0 - 1.0);
        let bias = HostTensor::from_fn([n], |i| i as f32 / 100.0);
        let bytes = safetensors::to_bytes([("fc.weight", &weight), ("fc.bias", &bias)], &BTreeMap::new()).unwrap();
        let checkpoint = Checkpoint::from_source(Arc::new(MemorySource::new("fc", bytes))).unwrap();
        let x = HostTensor::from_fn([2, 3, k], |i| (i as f32 * 0.7).sin());
        let precisions = [None, Some(DType::Q8)].map(|weights| Precision { weights, ..Precision::F32 });
        let run = |precision: Precision, padded: bool| {
            let vars = Vars::new(checkpoint.clone(), precision);
            let mut g = Graph::new("fc");
            let input = g.input("x", TensorType::f32([2, 3, k]), Rate::Step).unwrap();
            let y = match padded {
                true => vars.linear(&mut g, "fc", input, n).unwrap(),
                false => {
                    let w = vars.matrix(&mut g, "fc.weight", k, n).unwrap();
                    let b = vars.parameter(&mut g, "fc.bias", [n]).unwrap();
                    g.apply(MatMul::linear(), &[input, w, b]).unwrap()
                }
            };
            g.output("y", y).unwrap();
            let inputs = HashMap::from([("x".to_owned(), x.clone())]);
            (reference::run(&g, &inputs, |_, _| Ok(())).unwrap().remove("y").unwrap(), g.nodes().len())
        };
        let (plain, few) = run(precisions[0], false);
        let (same, more) = run(precisions[0], true);
        assert!(more > few, "nothing was padded");
        assert_eq!(plain, same);
        let (close, _) = run(precisions[1], true);
        let worst = plain.to_f32_vec().iter().zip(close.to_f32_vec()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst > 0.0 && worst < 0.2, "quantised: {worst}");
    }
}
