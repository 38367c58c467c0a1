//! Products of cooperative matrices: the tiles of `shaders/shared/cooperative_tile.wgsl` and what they ask of a device.

use crate::{Capabilities, DeviceKind, Dispatch, Variant};

/// How a workgroup's tile is made up.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// Of the variant.
    name: &'static str,
    /// Subgroups, down and across.
    subgroups: [u32; 2],
    /// Matrices of sums of a subgroup, 2 or 4 down and across.
    matrices: [u32; 2],
    /// Steps of the inner axis that are copied at a time.
    step: u32,
    /// What an element costs, next to those of the others.
    slowness: usize,
}

/// With 16 x 16 matrices 128 x 256, 128 x 128 and 64 x 64 elements. More sums to a subgroup are fewer reads of workgroup memory.
const SHAPES: [Shape; 3] = [
    Shape { name: "wide_cooperative", subgroups: [2, 4], matrices: [4, 4], step: 32, slowness: 4 },
    Shape { name: "cooperative", subgroups: [2, 2], matrices: [4, 4], step: 32, slowness: 5 },
    Shape { name: "small_cooperative", subgroups: [2, 2], matrices: [2, 2], step: 32, slowness: 7 },
];

/// Workgroups that a GPU runs at once, about: fewer leave a part of it idle.
const AT_ONCE: usize = 128;

/// Rows below which other kernels waste less.
const FEW_ROWS: usize = 16;

/// A workgroup's tile on a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CooperativeTile {
    shape: Shape,
    /// Rows and columns of a matrix.
    size: u32,
    /// Lanes of a subgroup.
    lanes: u32,
}

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

    /// The tiles that a device can run.
    fn of(capabilities: &Capabilities) -> impl Iterator<Item = CooperativeTile> {
        let (size, lanes) = (capabilities.cooperative_size, capabilities.subgroup_lanes);
        let (bytes, invocations) = (capabilities.max_workgroup_bytes, capabilities.max_invocations);
        let able = capabilities.shader_f16 && matches!(size, 8 | 16) && lanes > 0;
        let tiles = SHAPES.into_iter().map(move |shape| CooperativeTile { shape, size, lanes });
        tiles.filter(move |t| able && t.invocations() <= invocations && t.bytes() <= bytes)
    }

    /// Of the variant.
    pub(crate) fn name(self) -> &'static str {
        self.shape.name
    }

    /// Rows and columns of a subgroup.
    fn span(self) -> [u32; 2] {
        self.shape.matrices.map(|n| n * self.size)
    }

    fn extents(self) -> [u32; 2] {
        let ([down, across], [rows, columns]) = (self.shape.subgroups, self.span());
        [down * rows, across * columns]
    }

    /// Rows of the result.
    pub(crate) fn rows(self) -> usize {
        self.extents()[0] as usize
    }

    /// Columns of the product.
    pub(crate) fn columns(self) -> usize {
        self.extents()[1] as usize
    }

    fn subgroups(self) -> u32 {
        self.shape.subgroups.iter().product()
    }

    fn invocations(self) -> u32 {
        self.subgroups() * self.lanes
    }

    /// Both operands in f16, and two matrices of sums for each subgroup; rows are padded by 16 bytes.
    fn bytes(self) -> u32 {
        let ([rows, columns], step) = (self.extents(), self.shape.step);
        let operands = rows * (step + 8) + step * (columns + 8);
        2 * operands + 4 * self.subgroups() * self.size * (2 * self.size + 4)
    }

    /// About how long a result takes: what a tile computes past the edges counts, and that smaller ones read more often.
    fn effort(self, rows: usize, columns: usize) -> usize {
        let workgroups = rows.div_ceil(self.rows()) * columns.div_ceil(self.columns());
        workgroups.max(AT_ONCE) * self.rows() * self.columns() * self.shape.slowness
    }

    /// The dispatch with the tile's permutation and constants.
    pub(crate) fn apply(self, dispatch: Dispatch) -> Dispatch {
        let ([rows, columns], [span_rows, span_columns]) = (self.extents(), self.span());
        dispatch
            .feature(if self.size == 8 { "coop8" } else { "coop16" }, true)
            .constant("ROWS", rows)
            .constant("COLUMNS", columns)
            .constant("SPANROWS", span_rows)
            .constant("SPANCOLUMNS", span_columns)
            .constant("STEP", self.shape.step)
            .constant("LANES", self.lanes)
    }
}
