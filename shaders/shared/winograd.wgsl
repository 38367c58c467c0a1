// What the three shaders of Winograd's convolution share: F(2 x 2, 3 x 3) of Lavin & Gray (arXiv 1509.09308). Results go in tiles of
// 2 x 2 pixels, T of all images; a tile's patch is the 4 x 4 pixels of x under it; and each of 16 sums over channels takes the place of
// nine sums for four pixels.

import package::shared::conv2d_tile::params;

// Rows and columns of tiles to an image.
fn tile_extents() -> vec2<u32> {
    return vec2((params.out_height + 1u) >> 1u, (params.out_width + 1u) >> 1u);
}

// T.
fn tile_count() -> u32 {
    let e = tile_extents();
    return params.pixels / (params.out_height * params.out_width) * e.x * e.y;
}

// Upper left pixel of tile t in the result, and its image.
fn tile_at(t: u32) -> vec3<u32> {
    let e = tile_extents();
    return vec3(2u * (t / e.y % e.x), 2u * (t % e.y), t / (e.x * e.y));
}
