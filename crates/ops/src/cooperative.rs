//! Products of cooperative matrices: the tiles of `shaders/shared/cooperative_tile.wgsl` and what they ask of a device.

use crate::{Capabilities, DeviceKind, Dispatch, Variant};

/// Steps of the inner axis that a workgroup copies at a time.
const STEP: u32 = 32;

/// A workgroup's tile: subgroups two rows down, each with square sums of matrices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CooperativeTile {
    /// Of the variant.
    pub name: &'static str,
    /// Subgroups side by side.
    across: u32,
    /// Rows and columns of a subgroup's sums in matrices.
    matrices: u32,
    /// Rows and columns of a matrix.
    size: u32,
    lanes: u32,
}

/// Name, subgroups side by side and matrices of a subgroup, with 16 x 16 matrices for 128 x 256, 128 x 128 and 64 x 64 elements.
const TILES: [(&str, u32, u32); 3] = [("wide_cooperative", 4, 4), ("cooperative", 2, 4), ("small_cooperative", 2, 2)];

/// Workgroups that a GPU runs at once, about: fewer leave a part of it idle.
const AT_ONCE: usize = 128;

/// Rows below which other kernels waste less.
const FEW_ROWS: usize = 16;

impl CooperativeTile {
    /// Adds a variant for each tile that a device can run to the others: before them, the most promising first, where a GPU has
    /// enough to do.
    pub(crate) fn offer(
        others: Vec<Variant>,
        capabilities: &Capabilities,
        [rows, columns]: [usize; 2],
        variant: impl Fn(CooperativeTile) -> Variant,
    ) -> Vec<Variant> {
        let mut tiles: Vec<_> = Self::of(capabilities).collect();
        tiles.sort_by_key(|t| t.effort(rows, columns));
        let cooperative: Vec<_> = tiles.into_iter().map(variant).collect();
        match capabilities.kind == DeviceKind::Cpu || rows < FEW_ROWS {
            true => [others, cooperative].concat(),
            false => [cooperative, others].concat(),
        }
    }

    /// About how long a result takes: what a tile computes past the edges counts, and that smaller ones read more often.
    fn effort(self, rows: usize, columns: usize) -> usize {
        let workgroups = rows.div_ceil(self.rows()) * columns.div_ceil(self.columns());
        let slowness = if self.matrices == 2 { 7 } else { 6 - self.across as usize / 2 };
        workgroups.max(AT_ONCE) * self.rows() * self.columns() * slowness
    }

    /// The tiles that a device can run.
    fn of(capabilities: &Capabilities) -> impl Iterator<Item = CooperativeTile> {
        let (size, lanes) = (capabilities.cooperative_size, capabilities.subgroup_lanes);
        let (bytes, invocations) = (capabilities.max_workgroup_bytes, capabilities.max_invocations);
        let tiles = TILES.map(|(name, across, matrices)| CooperativeTile { name, across, matrices, size, lanes });
        let able = capabilities.shader_f16 && matches!(size, 8 | 16) && lanes > 0;
        tiles.into_iter().filter(move |t| able && t.invocations() <= invocations && t.bytes() <= bytes)
    }

    fn span(self) -> u32 {
        self.matrices * self.size
    }

    /// Rows of the result.
    pub(crate) fn rows(self) -> usize {
        (2 * self.span()) as usize
    }

    /// Columns of the product.
    pub(crate) fn columns(self) -> usize {
        (self.across * self.span()) as usize
    }

    fn invocations(self) -> u32 {
        2 * self.across * self.lanes
    }

    /// Both operands in f16, and two matrices of sums for each subgroup; rows are padded by 16 bytes.
    fn bytes(self) -> u32 {
        let operands = 2 * self.span() * (STEP + 8) + STEP * (self.across * self.span() + 8);
        2 * operands + 4 * 2 * self.across * self.size * (2 * self.size + 4)
    }

    /// The dispatch with the tile's permutation and constants.
    pub(crate) fn apply(self, dispatch: Dispatch) -> Dispatch {
        dispatch
            .feature(if self.size == 8 { "coop8" } else { "coop16" }, true)
            .constant("ROWS", 2 * self.span())
            .constant("COLUMNS", self.across * self.span())
            .constant("SPAN", self.span())
            .constant("STEP", STEP)
            .constant("LANES", self.lanes)
    }
}
