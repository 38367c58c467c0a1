//! Images in bands of rows, where values would exceed a device's binding.
//!
//! Every operator still sees the whole image: a convolution takes the rows around its band from the neighbours, a group norm its
//! statistics from all bands. So there is no seam. What costs little (normalisation, upsampling) is computed on the rows that a reader
//! takes, and never stored as a whole; what is stored, is stored in bands. Images of a batch are cut one by one.

use super::copy::Copy;
use crate::{Graph, NodeId, NodeKind};
use pulid_ops::{Concat, Operator, Slice};
use pulid_tensor::{Result, TensorType};
use std::ops::Range;

/// Cuts what takes more than `limit` bytes, as far as its operators can go by rows.
pub(super) fn cut(graph: &Graph, limit: usize) -> Result<Graph> {
    let is_value = |kind: &NodeKind| !matches!(kind, NodeKind::Weight(_));
    if graph.nodes.iter().all(|node| !is_value(&node.kind) || node.ty.bytes() <= limit) {
        return Ok(graph.clone());
    }
    let mut readers = vec![Vec::new(); graph.nodes.len()];
    for (index, node) in graph.nodes.iter().enumerate() {
        node.operands().iter().for_each(|id| readers[id.index()].push(index));
    }
    for (_, id) in &graph.outputs {
        // Stored whole, whoever else reads it.
        readers[id.index()].extend([usize::MAX; 2]);
    }
    let mut cutter = Cutter { copy: Copy::of(graph), values: Vec::new(), readers, limit };
    for index in 0..graph.nodes.len() {
        let value = cutter.place(index)?;
        cutter.values.push(value);
    }
    let outputs = graph.outputs.iter().map(|(_, id)| cutter.whole(*id)).collect::<Result<Vec<_>>>()?;
    Ok(cutter.copy.finish(outputs))
}

/// Where a value of the old graph is in the new one.
#[derive(Clone, Debug)]
enum Value {
    /// A node.
    Whole(NodeId),
    /// For each image of the batch, from the top: the first row of each band, and the band [1, rows, W, C].
    Bands(Vec<Vec<(usize, NodeId)>>),
    /// Computed where it is read.
    Rows(Box<dyn Operator>, Vec<Operand>),
}

/// What an operator of [`Value::Rows`] reads.
#[derive(Clone, Debug)]
enum Operand {
    /// A value of the old graph.
    Old(NodeId),
    /// A node of the new graph for each image of the batch.
    Each(Vec<NodeId>),
}

struct Cutter<'a> {
    copy: Copy<'a>,
    /// Of every old node so far.
    values: Vec<Value>,
    /// The nodes that read each old one.
    readers: Vec<Vec<usize>>,
    /// Bytes that one value may take.
    limit: usize,
}

impl Cutter<'_> {
    fn ty(&self, id: NodeId) -> &TensorType {
        self.copy.old.ty(id)
    }

    /// Images, rows, and bytes of a row.
    fn extents(&self, id: NodeId) -> (usize, usize, usize) {
        let ty = self.ty(id);
        let (images, rows) = (ty.shape[0], ty.shape[1]);
        (images, rows, (ty.bytes() / (images * rows).max(1)).max(1))
    }

    fn is_image(&self, id: NodeId) -> bool {
        self.ty(id).shape.rank() == 4 && !matches!(self.copy.old.nodes[id.index()].kind, NodeKind::Weight(_))
    }

    /// Whether a node gives or takes an image that exceeds the limit.
    fn is_large(&self, index: usize) -> bool {
        let mut values = self.copy.old.nodes[index].operands().iter().copied().chain([NodeId(index as u32)]);
        values.any(|id| self.is_image(id) && self.ty(id).bytes() > self.limit)
    }

    fn place(&mut self, index: usize) -> Result<Value> {
        let old = self.copy.old;
        let node = &old.nodes[index];
        let id = NodeId(index as u32);
        if let NodeKind::Apply { operator, inputs } = &node.kind
            && self.is_image(id)
        {
            let large = self.is_large(index);
            let in_bands = |id: &NodeId| matches!(self.values[id.index()], Value::Bands(_));
            if let Some(passes) = operator.two_passes()
                && (large || inputs.first().is_some_and(in_bands))
            {
                return self.see_images(index, passes.image, passes.rows, inputs);
            }
            let operands: Vec<_> = inputs.iter().map(|&id| Operand::Old(id)).collect();
            if large && let Some(all) = self.rows_of(operator.as_ref(), &operands, 0..node.ty.shape[1]) {
                if all.cheap || self.read_row_by_row(id) {
                    return Ok(Value::Rows(operator.clone(), operands));
                }
                return self.store(index, operator.as_ref(), &operands);
            }
        }
        let operands = node.operands().iter().map(|&id| self.whole(id)).collect::<Result<Vec<_>>>()?;
        Ok(Value::Whole(self.copy.same(index, &operands)))
    }

    /// Whether a value's one reader is stored in bands and takes of it the very rows that it gives. Computed with that, both can become
    /// one operator, and little waits between.
    fn read_row_by_row(&self, id: NodeId) -> bool {
        let &[reader] = self.readers[id.index()].as_slice() else { return false };
        let Some(NodeKind::Apply { operator, inputs }) = self.copy.old.nodes.get(reader).map(|n| &n.kind) else {
            return false;
        };
        let types: Vec<_> = inputs.iter().map(|&i| self.ty(i).clone()).collect();
        let all = 0..self.ty(id).shape[1];
        let part = all.end / 3..all.end.div_ceil(2);
        self.is_large(reader)
            && operator.two_passes().is_none()
            && [all, part].into_iter().all(|range| {
                operator.rows(&types, range.clone()).is_some_and(|rows| {
                    let takes = inputs.iter().position(|i| *i == id).and_then(|i| rows.operands[i].clone());
                    !rows.cheap && rows.rows == range && takes == Some(range)
                })
            })
    }

    fn rows_of(&self, operator: &dyn Operator, operands: &[Operand], rows: Range<usize>) -> Option<pulid_ops::RowsOf> {
        let ty = |operand: &Operand| match operand {
            Operand::Old(id) => self.ty(*id).clone(),
            Operand::Each(nodes) => self.copy.new.ty(nodes[0]).clone(),
        };
        let types: Vec<_> = operands.iter().map(ty).collect();
        operator.rows(&types, rows)
    }

    /// Runs an operator over all bands of each image; the value is then computed from rows and what that gave.
    fn see_images(
        &mut self,
        index: usize,
        image: Box<dyn Operator>,
        rows: Box<dyn Operator>,
        inputs: &[NodeId],
    ) -> Result<Value> {
        let (x, images) = (inputs[0], self.extents(inputs[0]).0);
        if let Value::Rows(operator, operands) = self.values[x.index()].clone() {
            self.values[x.index()] = self.store(x.index(), operator.as_ref(), &operands)?;
        }
        let others = inputs[1..].iter().map(|&id| self.whole(id)).collect::<Result<Vec<_>>>()?;
        let mut seen = Vec::with_capacity(images);
        for n in 0..images {
            let mut operands = match &self.values[x.index()] {
                Value::Bands(bands) => bands[n].iter().map(|(_, band)| *band).collect(),
                _ => vec![self.fetch(x, n, 0..self.extents(x).1)?],
            };
            operands.extend(&others);
            seen.push(self.copy.instead(index, image.clone(), &operands)?);
        }
        Ok(Value::Rows(rows, vec![Operand::Old(x), Operand::Each(seen)]))
    }

    /// Computes a value in the largest bands that stay below the limit, with all that is computed on the way. A single row may still
    /// exceed it; the planner then says so.
    fn store(&mut self, index: usize, operator: &dyn Operator, operands: &[Operand]) -> Result<Value> {
        let id = NodeId(index as u32);
        let (images, height, row_bytes) = self.extents(id);
        let bands = |step: usize| (0..height).step_by(step).map(move |first| first..height.min(first + step));
        let (mut step, mut too_many) = (1, height + 1);
        while too_many - step > 1 {
            let middle = step.midpoint(too_many);
            let fits = bands(middle).all(|rows| self.most_bytes(operator, operands, row_bytes, rows) <= self.limit);
            if fits { step = middle } else { too_many = middle }
        }
        let mut stored = Vec::with_capacity(images);
        for n in 0..images {
            let mut image = Vec::new();
            for rows in bands(step) {
                image.push((rows.start, self.compute(index, operator, operands, n, rows)?));
            }
            stored.push(image);
        }
        Ok(Value::Bands(stored))
    }

    /// Bytes of the largest value on the way to some rows of a result.
    fn most_bytes(&self, operator: &dyn Operator, operands: &[Operand], row: usize, rows: Range<usize>) -> usize {
        let Some(part) = self.rows_of(operator, operands, rows) else { return usize::MAX };
        let mut most = part.rows.len().saturating_mul(row);
        for (operand, rows) in operands.iter().zip(part.operands) {
            let (&Operand::Old(id), Some(rows)) = (operand, rows) else { continue };
            let row = self.extents(id).2;
            most = most.max(match &self.values[id.index()] {
                Value::Rows(operator, operands) => self.most_bytes(operator.as_ref(), operands, row, rows),
                _ => rows.len().saturating_mul(row),
            });
        }
        most
    }

    /// Some rows of image `n` of an operator's result, under the label of node `index`.
    fn compute(
        &mut self,
        index: usize,
        operator: &dyn Operator,
        operands: &[Operand],
        n: usize,
        rows: Range<usize>,
    ) -> Result<NodeId> {
        let Some(part) = self.rows_of(operator, operands, rows.clone()) else {
            let detail = format!("cannot give rows {rows:?} by themselves");
            return Err(pulid_tensor::Error::operator(operator.name(), detail));
        };
        let mut inputs = Vec::with_capacity(operands.len());
        for (operand, rows) in operands.iter().zip(part.operands) {
            inputs.push(match (operand, rows) {
                (Operand::Each(nodes), _) => nodes[n],
                (Operand::Old(id), Some(rows)) => self.fetch(*id, n, rows)?,
                (Operand::Old(id), None) => self.whole(*id)?,
            });
        }
        let y = self.copy.instead(index, part.operator, &inputs)?;
        self.part(index, y, 1, rows.start - part.rows.start..rows.end - part.rows.start)
    }

    /// Some rows of image `n` of an old value, [1, rows, W, C].
    fn fetch(&mut self, id: NodeId, n: usize, rows: Range<usize>) -> Result<NodeId> {
        let index = id.index();
        match self.values[index].clone() {
            Value::Whole(x) => {
                let image = self.part(index, x, 0, n..n + 1)?;
                self.part(index, image, 1, rows)
            }
            Value::Rows(operator, operands) => self.compute(index, operator.as_ref(), &operands, n, rows),
            Value::Bands(images) => {
                let mut parts = Vec::new();
                for &(top, band) in &images[n] {
                    let height = self.copy.new.shape(band)[1];
                    let (from, to) = (rows.start.max(top), rows.end.min(top + height));
                    if from < to {
                        parts.push(self.part(index, band, 1, from - top..to - top)?);
                    }
                }
                self.join(index, 1, parts)
            }
        }
    }

    /// All of an old value as one.
    fn whole(&mut self, id: NodeId) -> Result<NodeId> {
        if let Value::Whole(x) = self.values[id.index()] {
            return Ok(x);
        }
        let (images, height, _) = self.extents(id);
        let images = (0..images).map(|n| self.fetch(id, n, 0..height)).collect::<Result<Vec<_>>>()?;
        self.join(id.index(), 0, images)
    }

    /// Part of a new value along an axis, which may be all of it.
    fn part(&mut self, index: usize, x: NodeId, axis: usize, range: Range<usize>) -> Result<NodeId> {
        let shape = self.copy.new.shape(x);
        if range == (0..shape[axis]) {
            return Ok(x);
        }
        let slice = Slice::along(shape, axis, range.start, range.len());
        self.copy.instead(index, Box::new(slice), &[x])
    }

    fn join(&mut self, index: usize, axis: usize, parts: Vec<NodeId>) -> Result<NodeId> {
        match parts[..] {
            [part] => Ok(part),
            _ => self.copy.instead(index, Box::new(Concat::new(axis)), &parts),
        }
    }
}
