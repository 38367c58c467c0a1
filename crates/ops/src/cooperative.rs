//! Products of cooperative matrices: the tiles of `shaders/shared/cooperative_tile.wgsl` and what they ask of a device.

use crate::split_k::{Extents, Grid, Parts};
use crate::{Capabilities, DeviceKind, Dispatch, Variant};

/// How a workgroup's tile is made up.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// Of the variant.
    name: &'static str,
    /// The same, of the variant with an inner axis in parts.
    split: &'static str,
    /// Subgroups, down and across.
    subgroups: [u32; 2],
    /// Matrices of sums of a subgroup, 2 or 4 down and across.
    matrices: [u32; 2],
    /// What an element costs, next to those of the others.
    slowness: usize,
}

/// With 16 x 16 matrices 128 x 256, 128 x 128 and 64 x 64 elements. More sums to a subgroup are fewer reads of workgroup memory.
const SHAPES: [Shape; 3] = [
    Shape {
        name: "wide_cooperative",
        split: "wide_cooperative_split",
        subgroups: [2, 4],
        matrices: [4, 4],

        slowness: 4,
    },
    Shape { name: "cooperative", split: "cooperative_split", subgroups: [2, 2], matrices: [4, 4], slowness: 5 },
    Shape {
        name: "small_cooperative",
        split: "small_cooperative_split",
        subgroups: [2, 2],
        matrices: [2, 2],

        slowness: 7,
    },
];

/// Workgroups that a GPU runs at once, about: fewer leave a part of it idle.
const AT_ONCE: usize = 128;

/// Elements of the inner axis that are multiplied while a sum is written and read again.
const TRAFFIC: usize = 200;

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
    /// Elements of the inner axis that are copied at a time.
    pub(crate) const STEP: usize = 32;

    /// Adds a variant for each tile that a device can run to the others, and for its inner axis of `k` in parts where that may
    /// help: before them, the most promising first, where a GPU has enough to do.
    pub(crate) fn offer(
        others: Vec<Variant>,
        capabilities: &Capabilities,
        extents: Extents,
        variant: impl Fn(CooperativeTile, Option<Parts>) -> Option<Variant>,
    ) -> Vec<Variant> {
        let mut tiles = Vec::new();
        for t in Self::of(capabilities) {
            let workgroups = extents.tiles(t.rows(), t.columns());
            let grid = Grid { workgroups, at_once: AT_ONCE, k: extents.k, step: Self::STEP, traffic: TRAFFIC };
            // What a tile computes past the edges counts, and that smaller ones read more often.
            let cost = t.rows() * t.columns() * t.shape.slowness;
            tiles.push((workgroups.max(AT_ONCE) * extents.k * cost, t, None));
            if let Some((parts, time)) = grid.split() {
                tiles.push((time * cost, t, Some(parts)));
            }
        }
        tiles.sort_by_key(|(effort, ..)| *effort);
        let cooperative: Vec<_> = tiles.into_iter().filter_map(|(_, t, parts)| variant(t, parts)).collect();
        match capabilities.kind == DeviceKind::Cpu || extents.rows < FEW_ROWS {
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

    /// Of the variant, of a product as a whole or in parts.
    pub(crate) fn name(self, parts: Option<Parts>) -> &'static str {
        if parts.is_some() { self.shape.split } else { self.shape.name }
    }

    /// Elements of the inner axis in so many steps.
    pub(crate) fn inner(self, steps: usize) -> usize {
        steps * Self::STEP
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
        let ([rows, columns], step) = (self.extents(), Self::STEP as u32);
        let operands = rows * (step + 8) + step * (columns + 8);
        2 * operands + 4 * self.subgroups() * self.size * (2 * self.size + 4)
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
            .constant("STEP", Self::STEP as u32)
            .constant("LANES", self.lanes)
    }
}
