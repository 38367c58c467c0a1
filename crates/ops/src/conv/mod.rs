//! Convolutions.

mod conv2d;
mod conv2d_gradient;
mod implicit;
mod window;
mod winograd;

use crate::Dispatch;

pub use conv2d::Conv2d;
pub use conv2d_gradient::Conv2dGradient;
pub(crate) use window::Window;

/// Workgroups of `tile` pixels and channels over so many of them, along pixels first, or along channels with `by_channels`. Pixels
/// may need more workgroups than an axis holds, `limit`; then they go in layers.
fn over_tiles(
    dispatch: Dispatch,
    [pixels, channels]: [usize; 2],
    tile: [usize; 2],
    by_channels: bool,
    limit: usize,
) -> Dispatch {
    let (columns, rows) = (channels.div_ceil(tile[1]), pixels.div_ceil(tile[0]));
    let layers = rows.div_ceil(limit);
    let rows = rows.div_ceil(layers);
    let (x, y) = if by_channels { (columns, rows) } else { (rows, columns) };
    dispatch.grid(x, y, layers)
}
