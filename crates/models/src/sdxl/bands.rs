//! Images in bands of rows, for networks whose values exceed a device's binding.
//!
//! Every operator still sees the whole image: a convolution fetches the rows around its band from the neighbours, a group
//! norm takes its statistics from all bands. So there is no seam. Normalisation and upsampling wait until rows are fetched
//! and then happen on these alone; neither is ever stored as a whole.

use crate::Vars;
use crate::layers::{Conv, add, concat, slice, upsample_nearest};
use pulid_graph::{Graph, NodeId};
use pulid_ops::{Activation, GroupApply, GroupStatistics};
use pulid_tensor::Result;
use std::ops::Range;

/// What rows go through when they are fetched.
#[derive(Clone, Copy, Debug)]
enum Pending {
    Nothing,
    /// A group norm's map and the activation after it.
    Norm(NodeId, Activation),
    /// Every pixel twice in both directions.
    Upsample,
}

/// An image [N, H, W, C] as consecutive bands of rows; more than one only where N = 1.
#[derive(Clone, Debug)]
pub(super) struct BandedImage {
    bands: Vec<NodeId>,
    pending: Pending,
    batch: usize,
    height: usize,
    width: usize,
    channels: usize,
}

impl BandedImage {
    /// A value of the graph, [N, H, W, C].
    pub(super) fn new(g: &Graph, x: NodeId) -> BandedImage {
        let s = g.shape(x);
        let (batch, height, width, channels) = (s[0], s[1], s[2], s[3]);
        BandedImage { bands: vec![x], pending: Pending::Nothing, batch, height, width, channels }
    }

    pub(super) fn channels(&self) -> usize {
        self.channels
    }

    /// All of it as one value.
    pub(super) fn whole(&self, g: &mut Graph) -> Result<NodeId> {
        self.rows(g, 0..self.height)
    }

    /// Some rows as one value, [N, rows, W, C].
    fn rows(&self, g: &mut Graph, rows: Range<usize>) -> Result<NodeId> {
        match self.pending {
            Pending::Nothing => self.stored_rows(g, rows),
            Pending::Norm(map, activation) => {
                let x = self.stored_rows(g, rows)?;
                g.apply(GroupApply { activation }, &[x, map])
            }
            Pending::Upsample => {
                let from = rows.start / 2..rows.end.div_ceil(2);
                let x = self.stored_rows(g, from.clone())?;
                let x = upsample_nearest(g, x, [2 * from.len(), self.width])?;
                match rows.len() == 2 * from.len() {
                    true => Ok(x),
                    false => slice(g, x, 1, rows.start - 2 * from.start, rows.len()),
                }
            }
        }
    }

    fn stored_rows(&self, g: &mut Graph, rows: Range<usize>) -> Result<NodeId> {
        let mut parts = Vec::new();
        let mut top = 0;
        for &band in &self.bands {
            let height = g.shape(band)[1];
            let (from, to) = (rows.start.max(top), rows.end.min(top + height));
            if from < to {
                let all = to - from == height;
                parts.push(if all { band } else { slice(g, band, 1, from - top, to - from)? });
            }
            top += height;
        }
        match parts[..] {
            [part] => Ok(part),
            _ => concat(g, 1, &parts),
        }
    }
}

/// Cuts images so that no value takes more than a number of bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Banding {
    /// Bytes that one value may take.
    pub(super) limit: usize,
    /// Bytes of an element.
    pub(super) element: usize,
}

impl Banding {
    fn fits(&self, p: &BandedImage) -> bool {
        let row = p.width.saturating_mul(p.channels).saturating_mul(self.element);
        p.batch.saturating_mul(p.height).saturating_mul(row) <= self.limit
    }

    /// `name`'s convolution of x, and if given an image of the result's size added to it.
    pub(super) fn conv2d(
        &self,
        vs: &Vars,
        g: &mut Graph,
        name: &str,
        x: &BandedImage,
        out: usize,
        conv: Conv,
        residual: Option<&BandedImage>,
    ) -> Result<BandedImage> {
        let [top, left, bottom, right] = conv.padding;
        let size = |length: usize, padding: usize| (length + padding).saturating_sub(conv.kernel) / conv.stride + 1;
        let mut y = BandedImage {
            bands: Vec::new(),
            pending: Pending::Nothing,
            batch: x.batch,
            height: size(x.height, top + bottom),
            width: size(x.width, left + right),
            channels: out,
        };
        if self.fits(x) && self.fits(&y) {
            let x = x.whole(g)?;
            let mut whole = vs.conv2d(g, name, x, out, conv)?;
            if let Some(residual) = residual {
                let residual = residual.whole(g)?;
                whole = g.scoped(name, |g| add(g, residual, whole))?;
            }
            return Ok(BandedImage::new(g, whole));
        }
        vs.scope(g, name, |vs, g| {
            let weight = vs.filters(g, "weight", [out, x.channels, conv.kernel, conv.kernel])?;
            let bias = vs.parameter(g, "bias", [out])?;
            let step = self.rows_of(x, &y, conv);
            for first in (0..y.height).step_by(step) {
                let last = y.height.min(first + step) - 1;
                // Rows under the windows of this band, counted from the first row of padding.
                let (from, to) = (first * conv.stride, last * conv.stride + conv.kernel);
                let inside = from.saturating_sub(top)..(to - top).min(x.height);
                let padding = [top.saturating_sub(from), left, (to - top).saturating_sub(x.height), right];
                let rows = x.rows(g, inside)?;
                let mut band =
                    g.apply(Conv { padding, ..conv }.operator(true, Activation::None), &[rows, weight, bias])?;
                if let Some(residual) = residual {
                    let residual = residual.rows(g, first..last + 1)?;
                    band = add(g, residual, band)?;
                }
                y.bands.push(band);
            }
            Ok(y)
        })
    }

    /// Rows of a band of y such that it and the rows of x that it needs stay below the limit. A single row may still
    /// exceed it; the planner then says so.
    fn rows_of(&self, x: &BandedImage, y: &BandedImage, conv: Conv) -> usize {
        let row = |p: &BandedImage| (p.width * p.channels * self.element).max(1);
        // Upsampling makes whole pairs of rows, one more at either end.
        let pairs = if matches!(x.pending, Pending::Upsample) { 2 } else { 0 };
        let fetched = (self.limit / row(x)).saturating_sub(conv.kernel + pairs) / conv.stride;
        fetched.min(self.limit / row(y)).clamp(1, y.height.max(1))
    }

    /// Group norm over x by `name.weight` and `name.bias`, then `f`.
    pub(super) fn group_norm(
        &self,
        vs: &Vars,
        g: &mut Graph,
        name: &str,
        x: &BandedImage,
        groups: usize,
        eps: f32,
        f: Activation,
    ) -> Result<BandedImage> {
        if let [band] = x.bands[..]
            && self.fits(x)
        {
            let y = vs.group_norm(g, name, band, groups, eps, f)?;
            return Ok(BandedImage::new(g, y));
        }
        let map = vs.scope(g, name, |vs, g| {
            let gain = vs.parameter(g, "weight", [x.channels])?;
            let bias = vs.parameter(g, "bias", [x.channels])?;
            let operands: Vec<NodeId> = x.bands.iter().copied().chain([gain, bias]).collect();
            g.apply(GroupStatistics { groups, eps }, &operands)
        })?;
        Ok(BandedImage { pending: Pending::Norm(map, f), ..x.clone() })
    }

    /// Twice as high and wide.
    pub(super) fn upsample(&self, g: &mut Graph, x: &BandedImage) -> Result<BandedImage> {
        let larger = BandedImage { pending: Pending::Upsample, height: 2 * x.height, width: 2 * x.width, ..x.clone() };
        if self.fits(&larger) {
            let whole = larger.whole(g)?;
            return Ok(BandedImage::new(g, whole));
        }
        Ok(larger)
    }
}
