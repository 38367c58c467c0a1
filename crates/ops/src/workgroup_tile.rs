//! Products in workgroup memory: the tiles of `shaders/shared/workgroup_tile.wgsl`, what they ask of a device, and which of them
//! is likely the fastest.

use crate::arithmetic::Traffic;
use crate::split_k::{Extents, Grid, Parts};
use crate::{Capabilities, DeviceKind, Dispatch, Variant};

/// How a workgroup's tile is made up.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// Of the variant: rows and columns.
    name: &'static str,
    /// The same, of the variant with an inner axis in parts.
    split: &'static str,
    /// Invocations, down and across.
    invocations: [u32; 2],
    /// Rows of an invocation, 4 or 8; it has 8 columns.
    rows: u32,
}

/// Largest first. What an invocation reads of workgroup memory feeds twice as many products with 8 rows as with 4, and what a
/// workgroup reads of storage the more the larger its tile; smaller ones leave less of a GPU idle.
const SHAPES: [Shape; 4] = [
    Shape { name: "workgroup_tile_128x128", split: "workgroup_tile_128x128_split", invocations: [16, 16], rows: 8 },
    Shape { name: "workgroup_tile_64x64", split: "workgroup_tile_64x64_split", invocations: [8, 8], rows: 8 },
    Shape { name: "workgroup_tile_32x64", split: "workgroup_tile_32x64_split", invocations: [8, 8], rows: 4 },
    Shape { name: "workgroup_tile_32x32", split: "workgroup_tile_32x32_split", invocations: [8, 4], rows: 4 },
];

/// Columns of an invocation.
const COLUMNS: u32 = 8;

/// Rows and columns of the smallest tile.
const SMALLEST: usize = 32;

/// What a product costs about, by the table of devices.
const USUAL_SLOWNESS: usize = 10;

/// Steps of the inner axis in workgroup memory at a time.
const STEP: u32 = 16;

/// Elements of the inner axis that are multiplied while a sum is written and read again.
const TRAFFIC: usize = 50;

/// A workgroup's tile on a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkgroupTile(Shape);

impl WorkgroupTile {
    /// A variant for each tile that a device can run and that is not far too large, and for its inner axis of `k` in parts where
    /// that may help, the most promising first, to the `others`: after those on a CPU device, else before them.
    pub(crate) fn offer(
        others: impl IntoIterator<Item = Variant>,
        capabilities: &Capabilities,
        extents: Extents,
        variant: impl Fn(WorkgroupTile, Option<Parts>) -> Option<Variant>,
    ) -> Vec<Variant> {
        let at_once = capabilities.class.invocations();
        let mut tiles = Vec::new();
        for (shape, slowness) in SHAPES.into_iter().zip(capabilities.class.tiles()) {
            let t = WorkgroupTile(shape);
            let able = t.invocations() <= capabilities.max_invocations && t.bytes() <= capabilities.max_workgroup_bytes;
            let Some(slowness) = slowness.filter(|_| able && t.suits(extents.rows, extents.columns)) else { continue };
            let grid = t.grid(extents, at_once);
            let elements = t.rows() * t.columns();
            let busy = (grid.workgroups * slowness).max(grid.at_once * USUAL_SLOWNESS);
            tiles.push((busy * extents.k * elements, elements, t, None));
            if let Some((parts, time)) = grid.split() {
                tiles.push((time * USUAL_SLOWNESS * elements, elements, t, Some(parts)));
            }
        }
        tiles.sort_by_key(|(effort, elements, ..)| (*effort, *elements));
        let tiles = tiles.into_iter().filter_map(|(_, _, t, parts)| variant(t, parts)).collect();
        let others = others.into_iter().collect();
        let order: [Vec<_>; 2] = if capabilities.kind == DeviceKind::Cpu { [others, tiles] } else { [tiles, others] };
        order.concat()
    }

    /// Every tile, largest first.
    pub(crate) fn all() -> impl Iterator<Item = WorkgroupTile> {
        SHAPES.into_iter().map(WorkgroupTile)
    }

    /// What it moves for each multiply-add, of operands in f16.
    pub(crate) fn traffic(self) -> Traffic {
        let edges = |rows: f64, columns: f64| (rows + columns) / (rows * columns);
        let tile = edges(self.rows() as f64, self.columns() as f64);
        Traffic {
            matrices: false,
            memory: 2.0 * tile,
            // In f32: each invocation reads an element of each of its rows and columns for the products of both; copies are
            // written once.
            workgroup: 4.0 * edges(f64::from(self.0.rows), f64::from(COLUMNS)) + 4.0 * tile,
            // Two factors and the sum before and after, in f32.
            registers: 16.0,
        }
    }

    /// The workgroups of a product on a GPU that `at_once` invocations keep busy.
    fn grid(self, extents: Extents, at_once: usize) -> Grid {
        Grid {
            workgroups: extents.tiles(self.rows(), self.columns()),
            at_once: (at_once / self.invocations() as usize).max(1),
            k: extents.k,
            step: STEP as usize,
            traffic: TRAFFIC,
        }
    }

    /// Of the variant, of a product as a whole or in parts.
    pub(crate) fn name(self, parts: Option<Parts>) -> &'static str {
        if parts.is_some() { self.0.split } else { self.0.name }
    }

    /// Elements of the inner axis in so many steps.
    pub(crate) fn inner(self, steps: usize) -> usize {
        steps * STEP as usize
    }

    /// Rows of the result.
    pub(crate) fn rows(self) -> usize {
        (self.0.invocations[0] * self.0.rows) as usize
    }

    /// Columns of the product.
    pub(crate) fn columns(self) -> usize {
        (self.0.invocations[1] * COLUMNS) as usize
    }

    fn invocations(self) -> u32 {
        self.0.invocations.iter().product()
    }

    /// Whether not half of a tile would lie past the edges along an axis, where there are smaller ones.
    fn suits(self, rows: usize, columns: usize) -> bool {
        let fits = |tile: usize, extent: usize| tile == SMALLEST || tile < 2 * extent;
        fits(self.rows(), rows) && fits(self.columns(), columns)
    }

    /// Both operands in f32.
    fn bytes(self) -> u32 {
        4 * STEP * (self.rows() + self.columns()) as u32
    }

    /// The dispatch with the tile's constants, for steps along an axis of so many elements.
    pub(crate) fn apply(self, dispatch: Dispatch, axis: usize) -> Dispatch {
        let [down, across] = self.0.invocations;
        let partial = u32::from(!axis.is_multiple_of(STEP as usize));
        let dispatch = dispatch.constant("ACROSS", across).constant("DOWN", down).constant("PARTIAL", partial);
        if self.0.rows == 8 { dispatch.constant("TALL", 1) } else { dispatch }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeviceClass, LowerContext, MatMul, Operator, shader};
    use pulid_tensor::TensorType;

    fn extents(rows: usize, columns: usize) -> Extents {
        Extents { batch: 1, rows, columns, k: 64 }
    }

    fn first(class: DeviceClass, [m, n]: [usize; 2]) -> &'static str {
        let capabilities = Capabilities { class, ..Capabilities::baseline(DeviceKind::Discrete) };
        let inputs = [TensorType::f32([m, 640]), TensorType::f32([640, n])];
        let output = MatMul::default().infer(&inputs).unwrap();
        let cx = LowerContext { capabilities: &capabilities, inputs: &inputs, output: &output };
        MatMul::default().lower(&cx).unwrap()[0].name
    }

    #[test]
    fn large_results_take_large_tiles_and_small_ones_small() {
        for class in [DeviceClass::Nvidia, DeviceClass::Amd] {
            assert_eq!(first(class, [8192, 5120]), "workgroup_tile_128x128", "{class:?}");
            // Twenty workgroups are few.
            assert_eq!(first(class, [2, 1280]), "workgroup_tile_32x32_split", "{class:?}");
        }
        // Their invocations have too few registers for 64 sums.
        assert_eq!(first(DeviceClass::Mobile, [8192, 5120]), "workgroup_tile_32x64");
    }

    #[test]
    fn tiles_fit_the_limits_that_every_device_has() {
        let baseline = Capabilities::baseline(DeviceKind::Other);
        let less = Capabilities { max_workgroup_bytes: 8 << 10, max_invocations: 128, ..baseline.clone() };
        let names = |c: &Capabilities| {
            let variant = |t: WorkgroupTile, p| Some(Variant { name: t.name(p), dispatches: vec![], scratch: vec![] });
            WorkgroupTile::offer([], c, extents(4096, 4096), variant).len()
        };
        assert_eq!(names(&baseline), SHAPES.len());
        assert_eq!(names(&less), SHAPES.len() - 1);
    }

    #[test]
    fn no_tile_is_mostly_past_the_edges() {
        let names = |m: usize, n: usize| {
            let variant = |t: WorkgroupTile, p| Some(Variant { name: t.name(p), dispatches: vec![], scratch: vec![] });
            let offered = WorkgroupTile::offer([], &Capabilities::baseline(DeviceKind::Other), extents(m, n), variant);
            offered.into_iter().map(|v| v.name).collect::<Vec<_>>()
        };
        assert_eq!(names(2, 4), ["workgroup_tile_32x32"]);
        assert_eq!(names(64, 64).len(), 3);
        assert_eq!(names(65, 65).len(), 4);
    }

    #[test]
    fn a_tile_is_copied_by_whole_workgroups() {
        for t in SHAPES.map(WorkgroupTile) {
            let vec4s = |elements: usize| (elements as u32 * STEP / 4, t.invocations());
            for (count, invocations) in [vec4s(t.rows()), vec4s(t.columns())] {
                // What the shader has copies for: 1, 2 or 4 an invocation.
                assert!(count % invocations == 0 && matches!(count / invocations, 1 | 2 | 4), "{t:?}");
            }
            // Rows between copies of the right operand are even, since 4-bit blocks hold rows in pairs.
            assert!((4 * t.invocations() / t.columns() as u32).is_multiple_of(2), "{t:?}");
        }
        assert!(shader("matmul_workgroup_tile", &[]).is_some());
    }
}
