//! Tensors beside and below each other, on the host.

use pulid_tensor::{Error, HostTensor, Result};

/// Every row `times` times, rows staying in order: [a, b] becomes [a, a, b, b].
pub(super) fn repeat_rows(t: &HostTensor, times: usize) -> Result<HostTensor> {
    let mut shape = t.shape().to_vec();
    let row = t.shape().count() / shape[0].max(1);
    shape[0] *= times;
    let values = t.as_f32()?;
    let repeated = values.chunks(row.max(1)).flat_map(|r| std::iter::repeat_n(r, times)).flatten().copied().collect();
    HostTensor::from_f32(shape, repeated)
}

/// The rows of `a`, then those of `b`.
pub(super) fn join_rows(a: &HostTensor, b: &HostTensor) -> Result<HostTensor> {
    if a.shape().is_empty() || a.shape()[1..] != b.shape()[1..] {
        return Err(Error::invalid("tensors", format!("{} and {} have different rows", a.shape(), b.shape())));
    }
    let mut shape = a.shape().to_vec();
    shape[0] += b.shape()[0];
    HostTensor::from_f32(shape, [a.as_f32()?, b.as_f32()?].concat())
}

/// Tensors of equal leading extents side by side along the last axis.
pub(super) fn join_last_axis(parts: &[HostTensor]) -> Result<HostTensor> {
    let Some(first) = parts.first() else { return Err(Error::invalid("tensors", "nothing to join")) };
    let rows = first.shape().count() / first.shape().last().max(1);
    let mut shape = first.shape().to_vec();
    let mut joined = Vec::new();
    let values = parts.iter().map(HostTensor::as_f32).collect::<Result<Vec<_>>>()?;
    for row in 0..rows {
        for (part, values) in parts.iter().zip(&values) {
            let width = part.shape().last();
            let slice = values.get(row * width..(row + 1) * width);
            joined.extend_from_slice(slice.ok_or_else(|| Error::invalid("tensors", "rows differ"))?);
        }
    }
    if let Some(last) = shape.last_mut() {
        *last = parts.iter().map(|p| p.shape().last()).sum();
    }
    HostTensor::from_f32(shape, joined)
}

/// The rows of a tensor, each as a tensor of one row.
pub(super) fn split_rows(t: &HostTensor) -> Result<Vec<HostTensor>> {
    let mut shape = t.shape().to_vec();
    let rows = std::mem::replace(&mut shape[0], 1);
    let row = t.shape().count() / rows.max(1);
    t.as_f32()?.chunks(row.max(1)).map(|values| HostTensor::from_f32(shape.clone(), values.to_vec())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_repeat_in_order_and_join() {
        let t = HostTensor::from_fn([2, 1], |i| i as f32);
        assert_eq!(repeat_rows(&t, 2).unwrap().as_f32().unwrap(), [0.0, 0.0, 1.0, 1.0]);
        assert_eq!(join_rows(&t, &t).unwrap().shape().extents(), [4, 1]);
        assert_eq!(split_rows(&t).unwrap()[1].as_f32().unwrap(), [1.0]);
        let wide = join_last_axis(&[t.clone(), HostTensor::from_fn([2, 2], |i| i as f32 + 10.0)]).unwrap();
        assert_eq!(wide.as_f32().unwrap(), [0.0, 10.0, 11.0, 1.0, 12.0, 13.0]);
    }
}
