//! Sliding windows as files describe them.

use super::builder::Builder;
use super::call::Call;
use pulid_graph::NodeId;
use pulid_ops::Conv2d;
use pulid_tensor::{DType, HostTensor, Result};

/// A window over rows and columns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub dilation: [usize; 2],
    /// Top, left, bottom, right.
    pub padding: [usize; 4],
}

/// One axis of a window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Side {
    pub kernel: usize,
    pub stride: usize,
    pub dilation: usize,
    pub before: usize,
    pub after: usize,
}

impl Side {
    /// A window of one element.
    pub const ONE: Side = Side { kernel: 1, stride: 1, dilation: 1, before: 0, after: 0 };

    /// Elements from the first to the last that a window covers.
    pub fn covered(&self) -> usize {
        (self.kernel - 1).saturating_mul(self.dilation).saturating_add(1)
    }
}

impl Window {
    /// Rows and columns.
    pub fn new(rows: Side, columns: Side) -> Self {
        Window {
            kernel: [rows.kernel, columns.kernel],
            stride: [rows.stride, columns.stride],
            dilation: [rows.dilation, columns.dilation],
            padding: [rows.before, columns.before, rows.after, columns.after],
        }
    }

    /// The window over images: of two axes, or of one that becomes the columns.
    pub fn of(sides: &[Side]) -> Option<Self> {
        match *sides {
            [columns] => Some(Window::new(Side::ONE, columns)),
            [rows, columns] => Some(Window::new(rows, columns)),
            _ => None,
        }
    }
}

/// The window of a node over the given extents; convolutions tell the kernel by their filters.
pub(super) fn sides(call: &Call, extents: &[usize], filters: Option<&[usize]>) -> Result<Vec<Side>> {
    let count = extents.len();
    let kernel = match (filters, call.ints("kernel_shape")?) {
        (Some(kernel), None) => kernel.to_vec(),
        (filters, _) => {
            let kernel = call.sizes("kernel_shape", count, 0)?;
            if filters.is_some_and(|f| f != kernel) {
                return Err(call.error(format!("attribute `kernel_shape` = {kernel:?}, but filters are {filters:?}")));
            }
            kernel
        }
    };
    let (stride, dilation) = (call.sizes("strides", count, 1)?, call.sizes("dilations", count, 1)?);
    if [&kernel, &stride, &dilation].into_iter().flatten().any(|&n| n == 0) {
        return Err(call.error(format!("kernel {kernel:?}, strides {stride:?} or dilations {dilation:?} hold a zero")));
    }
    let mode = call.text("auto_pad", "NOTSET")?;
    let pads = match mode {
        "NOTSET" => call.sizes("pads", 2 * count, 0)?,
        "VALID" | "SAME_UPPER" | "SAME_LOWER" => vec![0; 2 * count],
        other => return Err(call.unsupported("auto_pad", other)),
    };
    Ok((0..count)
        .map(|axis| {
            let (kernel, stride, dilation) = (kernel[axis], stride[axis], dilation[axis]);
            let mut side = Side { kernel, stride, dilation, before: pads[axis], after: pads[axis + count] };
            if mode.starts_with("SAME") {
                let windows = extents[axis].div_ceil(stride);
                let covered = (windows.max(1) - 1).saturating_mul(stride).saturating_add(side.covered());
                let total = covered.saturating_sub(extents[axis]);
                // The odd element goes where the name says.
                side.before = if mode == "SAME_UPPER" { total / 2 } else { total.div_ceil(2) };
                side.after = total - side.before;
            }
            side
        })
        .collect())
}

/// Windows along one axis, and the padding behind it that lets the last of them end inside. With `ceil` a last, partly
/// covered window counts where it starts inside the input or the padding before it.
pub(super) fn windows(call: &Call, side: &Side, extent: usize, ceil: bool) -> Result<(usize, usize)> {
    let padded = extent.saturating_add(side.before).saturating_add(side.after);
    let room = padded.checked_sub(side.covered());
    let room = room.ok_or_else(|| call.error(format!("a window {side:?} does not fit {extent} elements")))?;
    let mut count = if ceil { room.div_ceil(side.stride) } else { room / side.stride } + 1;
    if ceil && (count - 1) * side.stride >= extent + side.before {
        count -= 1;
    }
    let end = (count - 1) * side.stride + side.covered();
    Ok((count, end.saturating_sub(extent + side.before)))
}

/// Sums under each window of x [N, H, W, C], zeros outside: a depthwise convolution with ones.
pub(super) fn sums(b: &mut Builder, call: &Call, x: NodeId, window: &Window) -> Result<NodeId> {
    let channels = b.graph.shape(x).last();
    let shape = [window.kernel[0], window.kernel[1], 1, channels];
    let dtype = b.graph.ty(x).dtype;
    let ones = b.weight(call, dtype, shape, move || {
        HostTensor::from_f32(shape, vec![1.0; shape.iter().product()]).map(|t| t.cast(DType::F32))
    });
    let operator = Conv2d {
        stride: window.stride,
        dilation: window.dilation,
        padding: window.padding,
        groups: channels,
        ..Conv2d::default()
    };
    b.graph.apply(operator, &[x, ones])
}
