//! Tensors seen otherwise than they are stored, without reading them.

use crate::{ElementType, Entry};
use pulid_tensor::Shape;
use std::ops::Range;

/// How a tensor of a file is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum View {
    /// As it is.
    Whole,
    /// Some of its first axis, for layers that a file keeps as one.
    Rows(Range<usize>),
    /// A matrix [N, K] as [K, N].
    Transposed,
    /// Filters of 1 x 1 as the matrix [O, I].
    Matrix,
}

impl View {
    /// The place of what is seen, or why it cannot be seen so.
    pub(crate) fn of(&self, entry: &Entry) -> Result<Entry, String> {
        let shape = entry.shape.extents();
        match self {
            View::Whole => Ok(entry.clone()),
            View::Matrix => match *shape {
                [o, i, 1, 1] => {
                    let strides = entry.strides.as_ref().map(|s| s[..2].to_vec());
                    Ok(Entry { shape: Shape::from([o, i]), strides, ..entry.clone() })
                }
                [_, _] => Ok(entry.clone()),
                _ => Err(format!("has shape {}, expected a matrix or filters of 1 x 1", entry.shape)),
            },
            View::Transposed => match *shape {
                [n, k] => {
                    let [down, right] = match entry.strides.as_deref() {
                        Some(&[down, right]) => [down, right],
                        _ => [k as u64, 1],
                    };
                    Ok(Entry { shape: Shape::from([k, n]), strides: Some(vec![right, down]), ..entry.clone() })
                }
                _ => Err(format!("has shape {}, expected a matrix", entry.shape)),
            },
            View::Rows(rows) => {
                let wrong = || format!("has shape {}, rows {} to {} are wanted", entry.shape, rows.start, rows.end);
                let (&count, rest) = shape.split_first().ok_or_else(wrong)?;
                if rows.start > rows.end || rows.end > count {
                    return Err(wrong());
                }
                let seen: Vec<usize> = [rows.len()].iter().chain(rest).copied().collect();
                let seen = Shape::new(seen);
                // Blocks are whole within a row, or rows cannot be seen alone.
                let elements = match &entry.strides {
                    None => rest.iter().map(|&n| n as u64).product(),
                    Some(_) if matches!(entry.element, ElementType::Ggml(_)) => return Err(wrong()),
                    Some(strides) => strides[0],
                };
                let row = entry.element.run_bytes(elements).ok_or_else(wrong)?;
                // After the last row of scattered ones there may be no bytes at all.
                let first = if rows.is_empty() { 0 } else { rows.start };
                let start = entry.bytes.start + first as u64 * row;
                let end = match &entry.strides {
                    _ if rows.is_empty() => start,
                    None => start + rows.len() as u64 * row,
                    // The last rows keep the gaps before the end, the others lose the rows after them.
                    Some(_) => entry.bytes.end - (count - rows.end) as u64 * row,
                };
                if end < start || end > entry.bytes.end {
                    return Err(wrong());
                }
                Ok(Entry { shape: seen, bytes: start..end, ..entry.clone() })
            }
        }
    }
}
