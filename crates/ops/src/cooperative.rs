//! Products of cooperative matrices: the tiles of `shaders/shared/cooperative_tile.wgsl` and what they ask of a device.

use crate::arithmetic::Traffic;
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
    /// What an element costs, next to those of the others, where all of a GPU is busy: as measured on an NVIDIA H200.
    slowness: usize,
}

/// With 16 x 16 matrices 128 x 256, 128 x 128 and 64 x 64 elements. More sums to a subgroup are fewer reads of workgroup memory.
const SHAPES: [Shape; 3] = [
    Shape {
        name: "wide_cooperative",
        split: "wide_cooperative_split",
        subgroups: [2, 4],
        matrices: [4, 4],
        slowness: 8,
    },
    Shape { name: "cooperative", split: "cooperative_split", subgroups: [2, 2], matrices: [4, 4], slowness: 12 },
    Shape {
        name: "small_cooperative",
        split: "small_cooperative_split",
        subgroups: [2, 2],
        matrices: [2, 2],
        slowness: 15,
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
    /// Lanes of a subgroup, the most where that varies: smaller subgroups, of which so many lanes are several, compute the same part
    /// of the tile and share its elements when it is stored.
    lanes: u32,
    /// Whether its operands lie in memory as units of 16 bytes.
    packed: bool,
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
            tiles.push((grid.whole() * cost, t, None));
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

    /// Every tile of matrices of a size, widest first.
    pub(crate) fn all(size: u32) -> impl Iterator<Item = CooperativeTile> {
        SHAPES.into_iter().map(move |shape| CooperativeTile { shape, size, lanes: 32, packed: false })
    }

    /// What it moves for each multiply-add, of operands in f16.
    pub(crate) fn traffic(self) -> Traffic {
        let edges = |[rows, columns]: [u32; 2]| f64::from(rows + columns) / f64::from(rows * columns);
        let tile = edges(self.extents());
        Traffic {
            matrices: true,
            memory: 2.0 * tile,
            // In f16: a subgroup reads matrices of each of its rows and columns for the products of both; copies are written once.
            workgroup: 2.0 * edges(self.span()) + 2.0 * tile,
            registers: Self::of_registers(self.size),
        }
    }

    /// Bytes from and to registers for each multiply-add of matrices: two of f16, and sums in f32 before and after.
    pub(crate) fn of_registers(size: u32) -> f64 {
        f64::from(2 * 2 + 2 * 4) / f64::from(size)
    }

    /// The tiles that a device can run.
    fn of(capabilities: &Capabilities) -> impl Iterator<Item = CooperativeTile> {
        let size = capabilities.cooperative_size;
        let [_, lanes] = capabilities.lanes().unwrap_or_default();
        let (bytes, invocations) = (capabilities.max_workgroup_bytes, capabilities.max_invocations);
        let able = capabilities.shader_f16 && matches!(size, 8 | 16) && lanes > 0;
        let packed = capabilities.packed_matrices && size == 16;
        let tiles = SHAPES.into_iter().map(move |shape| CooperativeTile { shape, size, lanes, packed });
        tiles.filter(move |t| able && t.invocations() <= invocations && t.bytes() <= bytes && t.copies_evenly())
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

    /// Whether its invocations copy each operand's tile together, 16 bytes each at a time: too many have nothing to copy.
    fn copies_evenly(self) -> bool {
        let ([rows, columns], step, all) = (self.extents(), Self::STEP as u32, self.invocations());
        [rows * step / 8, columns * step / 8].iter().all(|eights| eights % all == 0)
    }

    /// Both operands in f16, the right one by columns, which takes more, and two matrices of sums for each subgroup; rows are padded by
    /// 16 bytes.
    fn bytes(self) -> u32 {
        let ([rows, columns], step) = (self.extents(), Self::STEP as u32);
        let operands = (rows + columns) * (step + 8);
        2 * operands + 4 * self.subgroups() * self.size * (2 * self.size + 4)
    }

    /// The dispatch with the tile's permutation and constants, for steps along an axis of so many elements.
    pub(crate) fn apply(self, dispatch: Dispatch, axis: usize) -> Dispatch {
        let ([rows, columns], [span_rows, span_columns]) = (self.extents(), self.span());
        dispatch
            .feature(if self.size == 8 { "coop8" } else { "coop16" }, true)
            .feature("packed", self.packed)
            .constant("ROWS", rows)
            .constant("COLUMNS", columns)
            .constant("SPANROWS", span_rows)
            .constant("SPANCOLUMNS", span_columns)
            .constant("PARTIAL", u32::from(!axis.is_multiple_of(Self::STEP)))
            .constant("LANES", self.lanes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(subgroup_lanes: u32, varying_lanes: [u32; 2]) -> Vec<(&'static str, u32)> {
        let capabilities = Capabilities {
            shader_f16: true,
            subgroup_lanes,
            varying_lanes,
            cooperative_size: 16,
            max_workgroup_bytes: 64 << 10,
            max_invocations: 1024,
            ..Capabilities::baseline(DeviceKind::Discrete)
        };
        CooperativeTile::of(&capabilities).map(|t| (t.name(None), t.invocations())).collect()
    }

    #[test]
    fn workgroups_hold_their_subgroups_of_any_size() {
        let of_32 = [("wide_cooperative", 256), ("cooperative", 128), ("small_cooperative", 128)];
        assert_eq!(names(32, [0; 2]), of_32);
        // As many of the largest.
        assert_eq!(names(0, [32, 64]), of_32.map(|(name, invocations)| (name, 2 * invocations)));
        assert_eq!(names(0, [8, 32]), of_32);
        assert!(names(0, [0; 2]).is_empty());
        // Twice as many invocations as the smallest tile has eights to copy.
        assert!(!names(128, [0; 2]).iter().any(|(name, _)| *name == "small_cooperative"));
    }
}
