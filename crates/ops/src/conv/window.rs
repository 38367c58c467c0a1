use pulid_tensor::{Error, Result, TensorType};

/// A kernel window sliding over two axes: what convolution and pooling share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// Rows and columns of the kernel.
    pub kernel: [usize; 2],
    /// Step between windows.
    pub stride: [usize; 2],
    /// Step between the taps of a window.
    pub dilation: [usize; 2],
    /// Top, left, bottom, right.
    pub padding: [usize; 4],
}

impl Window {
    /// Rows and columns of windows over an input of `height` x `width`. With `ceil_mode` a last, partly covered window
    /// counts when it starts inside the input or its leading padding, as in PyTorch and ONNX.
    ///
    /// # Errors
    /// When a kernel, stride or dilation is zero, or the window is larger than the padded input.
    pub fn output(&self, operator: &str, height: usize, width: usize, ceil_mode: bool) -> Result<[usize; 2]> {
        let mut output = [0; 2];
        for (axis, extent) in [height, width].into_iter().enumerate() {
            let (kernel, stride, dilation) = (self.kernel[axis], self.stride[axis], self.dilation[axis]);
            if kernel == 0 || stride == 0 || dilation == 0 {
                return Err(Error::operator(
                    operator,
                    format!("kernel, stride and dilation must be positive: {self:?}"),
                ));
            }
            let (before, after) = (self.padding[axis], self.padding[axis + 2]);
            let covered = dilation.saturating_mul(kernel - 1).saturating_add(1);
            let padded = extent.saturating_add(before).saturating_add(after);
            let Some(room) = padded.checked_sub(covered) else {
                let why = format!("a window of {covered} does not fit the padded extent {padded} of {height}x{width}");
                return Err(Error::operator(operator, why));
            };
            output[axis] = match ceil_mode {
                false => room / stride + 1,
                true => {
                    let windows = room.div_ceil(stride) + 1;
                    windows - usize::from((windows - 1) * stride >= extent + before)
                }
            };
        }
        Ok(output)
    }

    /// Canonical text for attributes.
    pub fn label(&self) -> String {
        let Window { kernel: k, stride: s, dilation: d, padding: p } = self;
        format!(
            "kernel={}x{};stride={},{};dilation={},{};padding={},{},{},{}",
            k[0], k[1], s[0], s[1], d[0], d[1], p[0], p[1], p[2], p[3]
        )
    }

    /// Rows and columns that pooling x [N, H, W, C] gives.
    ///
    /// # Errors
    /// As [`Window::output`]; also when x is no image, or a window could lie in the padding altogether.
    pub fn pooled(&self, operator: &str, x: &TensorType, ceil_mode: bool) -> Result<[usize; 2]> {
        if x.shape.rank() != 4 || x.shape.count() == 0 {
            return Err(Error::operator(operator, format!("takes an image [N, H, W, C] with pixels, got {x}")));
        }
        let output = self.output(operator, x.shape[1], x.shape[2], ceil_mode)?;
        let covers = |axis: usize, side: usize| self.padding[side] < (self.kernel[axis] - 1) * self.dilation[axis] + 1;
        if !(covers(0, 0) && covers(1, 1) && covers(0, 2) && covers(1, 3)) {
            return Err(Error::operator(operator, format!("the padding must be less than a window: {self:?}")));
        }
        // A window that begins before the image could reach over it.
        if (0..2).any(|axis| self.padding[axis] > 0 && self.dilation[axis] > x.shape[1 + axis]) {
            let why = format!("the taps of a padded window are further apart than the image of {x} is wide: {self:?}");
            return Err(Error::operator(operator, why));
        }
        Ok(output)
    }

    /// Calls `f` for every window of [N, H, W, C] images in the result's order, with the window's row and column and
    /// the flat indices of the input pixels under it.
    pub fn for_each(&self, input: &TensorType, output: &TensorType, mut f: impl FnMut([usize; 2], &[usize])) {
        let (height, width) = (input.shape[1], input.shape[2]);
        let mut pixels = Vec::new();
        for n in 0..output.shape[0] {
            for (y, x) in (0..output.shape[1]).flat_map(|y| (0..output.shape[2]).map(move |x| (y, x))) {
                pixels.clear();
                for row in (0..self.kernel[0]).filter_map(|i| self.position(0, y, i, height)) {
                    let columns = (0..self.kernel[1]).filter_map(|j| self.position(1, x, j, width));
                    pixels.extend(columns.map(|column| (n * height + row) * width + column));
                }
                f([y, x], &pixels);
            }
        }
    }

    /// The input position that tap `tap` of window `window` reads along `axis`, if it is inside `extent`.
    pub fn position(&self, axis: usize, window: usize, tap: usize, extent: usize) -> Option<usize> {
        let padded = window * self.stride[axis] + tap * self.dilation[axis];
        padded.checked_sub(self.padding[axis]).filter(|&i| i < extent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_extents_follow_pytorch() {
        let w = Window { kernel: [3, 3], stride: [2, 2], dilation: [1, 1], padding: [0, 0, 1, 1] };
        assert_eq!(w.output("t", 8, 7, false).unwrap(), [4, 3]);
        let pool = Window { kernel: [3, 2], stride: [2, 2], dilation: [1, 1], padding: [0; 4] };
        assert_eq!(pool.output("t", 6, 5, true).unwrap(), [3, 3]);
        // The last window would start in the trailing padding and is dropped.
        let edge = Window { kernel: [2, 2], stride: [2, 2], dilation: [1, 1], padding: [1; 4] };
        assert_eq!(edge.output("t", 5, 4, true).unwrap(), [3, 3]);
        assert!(pool.output("t", 2, 5, false).is_err());
    }
}
