//! Convolutions as products of matrices whose rows are gathered, by tiles that a workgroup computes together. The gradient in the image
//! is one, too: a convolution of upstream with flipped taps and channels in and out swapped.

use super::over_tiles;
use crate::cooperative::CooperativeTile;
use crate::split_k::{Extents, Parts, Reduction};
use crate::workgroup_tile::WorkgroupTile;
use crate::{Dispatch, LowerContext, Variant, params};

params! {
    pub(super) struct TileParams {
        pixels: u32, height: u32, width: u32, in_channels: u32,
        out_height: u32, out_width: u32, out_channels: u32,
        kernel_height: u32, kernel_width: u32,
        stride_y: u32, stride_x: u32, dilation_y: u32, dilation_x: u32,
        pad_top: u32, pad_left: u32, part: u32,
    }
}

/// Such a product. One group, channels in and out in fours.
pub(super) struct ImplicitProduct<'a, F> {
    /// Of the operator.
    pub(super) cx: &'a LowerContext<'a>,
    /// Channels in vec4s.
    pub(super) params: TileParams,
    /// What follows the sums of parts.
    pub(super) end: Reduction,
    /// The stride of the convolution of which it is the gradient, as which the weight is stored; `None` where it is the convolution.
    pub(super) gradient_of: Option<[usize; 2]>,
    /// Binds the operands of a kernel that is no part, and says what follows its sums.
    pub(super) finish: F,
}

impl<F: Fn(Dispatch) -> Dispatch> ImplicitProduct<'_, F> {
    /// Adds variants by tiles in workgroup memory to the `others`.
    pub(super) fn workgroup_tiles(&self, others: impl IntoIterator<Item = Variant>) -> Vec<Variant> {
        let (taps, channels) = self.inner();
        WorkgroupTile::offer(others, self.cx.capabilities, self.extents(taps * channels), |t, parts| {
            let part = parts.map_or(0, |p| t.inner(p.steps) / 4);
            let mut kernel = t.apply(self.kernel("conv2d_workgroup_tile", part), channels);
            for (name, stride) in ["SPREADY", "SPREADX"].into_iter().zip(self.gradient_of.into_iter().flatten()) {
                kernel = kernel.constant(name, stride as u32);
            }
            self.variant(t.name(parts), kernel, [t.rows(), t.columns()], parts)
        })
    }

    /// Adds variants by cooperative matrices to the `others`. Operands are f16 and channels come in eights; x lies close.
    pub(super) fn cooperative_tiles(&self, others: Vec<Variant>) -> Vec<Variant> {
        let (taps, channels) = self.inner();
        // A step is of one tap.
        let k = taps * channels.next_multiple_of(CooperativeTile::STEP);
        CooperativeTile::offer(others, self.cx.capabilities, self.extents(k), |t, parts| {
            let kernel = t.apply(self.kernel("conv2d_cooperative", parts.map_or(0, |p| p.steps)), channels);
            self.variant(t.name(parts), kernel, [t.rows(), t.columns()], parts)
        })
    }

    /// Taps, and channels of the input.
    fn inner(&self) -> (usize, usize) {
        let p = &self.params;
        ((p.kernel_height * p.kernel_width) as usize, 4 * p.in_channels as usize)
    }

    fn extents(&self, k: usize) -> Extents {
        Extents { batch: 1, rows: self.end.rows, columns: self.end.columns, k }
    }

    /// A kernel that takes so many steps of the inner axis to a part.
    fn kernel(&self, shader: &'static str, part: usize) -> Dispatch {
        let params = TileParams { part: part as u32, ..self.params };
        Dispatch::new(shader, params).feature("transposed", self.gradient_of.is_some())
    }

    /// The variant of a kernel by tiles of so many rows and columns, where it fits.
    fn variant(&self, name: &'static str, kernel: Dispatch, tile: [usize; 2], parts: Option<Parts>) -> Option<Variant> {
        let (cx, end) = (self.cx, &self.end);
        let limit = cx.capabilities.max_workgroups;
        let Some(parts) = parts else {
            let sizes = [end.rows, end.columns];
            return Some(Variant::single(name, over_tiles((self.finish)(kernel), sizes, tile, true, limit as usize)));
        };
        let kernel = kernel.grid(end.columns.div_ceil(tile[1]), end.rows.div_ceil(tile[0]), parts.count);
        let fits = kernel.grid.iter().all(|&n| n <= limit);
        let types = [cx.inputs[0].dtype, cx.inputs[1].dtype];
        end.variant(name, kernel, types, parts, cx.capabilities.max_binding_bytes).filter(|_| fits)
    }
}
