//! Colours of photos: from what an ICC profile says to sRGB, as viewers show them.

use super::tables::{self, Curves, to_8};
use ::image::DynamicImage;
use moxcms::{ColorProfile, DataColorSpace, Layout, TransformOptions};

/// Largest profile that is read; those of printing presses with large tables take some megabytes.
const MAX_PROFILE: usize = 16 << 20;

/// Pixels that are transformed at a time.
const PIXELS: usize = 1 << 16;

/// A profile that is no more than this many levels of 255 from sRGB is sRGB: its rounding would be the only change.
const SAME: u8 = 1;

/// The pixels in sRGB, of the same kind. They stay as they are under a profile that is sRGB, damaged, or made for another kind of
/// pixels, as in viewers.
pub(super) fn to_srgb(image: DynamicImage, icc: &[u8]) -> DynamicImage {
    match parse(icc) {
        Some((profile, curves)) => by_profile(image, &profile, curves.as_ref()),
        None => image,
    }
}

/// [`to_srgb`] from a profile that is read already, whose colours are no tables.
pub(super) fn from_space(image: DynamicImage, profile: &ColorProfile) -> DynamicImage {
    by_profile(image, profile, None)
}

fn by_profile(image: DynamicImage, profile: &ColorProfile, curves: Option<&Curves>) -> DynamicImage {
    match (profile.color_space, image) {
        (DataColorSpace::Rgb, DynamicImage::ImageRgb8(mut image)) => {
            apply_8(profile, curves, Layout::Rgb, &mut image);
            DynamicImage::ImageRgb8(image)
        }
        (DataColorSpace::Rgb, DynamicImage::ImageRgba8(mut image)) => {
            apply_8(profile, curves, Layout::Rgba, &mut image);
            DynamicImage::ImageRgba8(image)
        }
        (DataColorSpace::Rgb, DynamicImage::ImageRgb16(mut image)) => {
            apply_16(profile, curves, Layout::Rgb, &mut image);
            DynamicImage::ImageRgb16(image)
        }
        (DataColorSpace::Rgb, DynamicImage::ImageRgba16(mut image)) => {
            apply_16(profile, curves, Layout::Rgba, &mut image);
            DynamicImage::ImageRgba16(image)
        }
        (DataColorSpace::Gray, DynamicImage::ImageLuma8(mut image)) => {
            apply_8(profile, curves, Layout::Gray, &mut image);
            DynamicImage::ImageLuma8(image)
        }
        (DataColorSpace::Gray, DynamicImage::ImageLumaA8(mut image)) => {
            apply_8(profile, curves, Layout::GrayAlpha, &mut image);
            DynamicImage::ImageLumaA8(image)
        }
        (DataColorSpace::Gray, DynamicImage::ImageLuma16(mut image)) => {
            apply_16(profile, curves, Layout::Gray, &mut image);
            DynamicImage::ImageLuma16(image)
        }
        (DataColorSpace::Gray, DynamicImage::ImageLumaA16(mut image)) => {
            apply_16(profile, curves, Layout::GrayAlpha, &mut image);
            DynamicImage::ImageLumaA16(image)
        }
        (_, image) => image,
    }
}

/// RGB of amounts of ink, four to a pixel from 0 (none) to 255, by a profile of such; `None` without a usable one.
pub(super) fn inks_to_srgb(inks: &[u8], icc: &[u8]) -> Option<Vec<u8>> {
    let (profile, curves) = parse(icc).filter(|(profile, _)| profile.color_space == DataColorSpace::Cmyk)?;
    if let Some(curves) = curves {
        let to = ColorProfile::new_srgb();
        let transform = profile.create_transform_16bit(Layout::Rgba, &to, Layout::Rgb, options(&profile)).ok()?;
        let mut rgb = Vec::with_capacity(inks.len() / 4 * 3);
        for part in inks.chunks(4 * PIXELS) {
            let mut deep = vec![0; part.len() / 4 * 3];
            transform.transform(&curves.apply_8(part, 4), &mut deep).ok()?;
            rgb.extend(deep.into_iter().map(to_8));
        }
        return Some(rgb);
    }
    // Four channels are what this library calls Rgba.
    let transform =
        profile.create_transform_8bit(Layout::Rgba, &ColorProfile::new_srgb(), Layout::Rgb, options(&profile)).ok()?;
    let mut rgb = vec![0; inks.len() / 4 * 3];
    transform.transform(inks, &mut rgb).ok()?;
    Some(rgb)
}

fn parse(icc: &[u8]) -> Option<(ColorProfile, Option<Curves>)> {
    (icc.len() <= MAX_PROFILE).then(|| tables::parse(icc)).flatten()
}

/// How a profile's colours are computed: those of a table with floating-point numbers, since the library's fixed ones of 15 bits are up to a
/// level off between its points.
fn options(profile: &ColorProfile) -> TransformOptions {
    let table = profile.lut_a_to_b_perceptual.is_some();
    TransformOptions { prefer_fixed_point: !table, ..TransformOptions::default() }
}

/// sRGB's counterpart of a layout: its own, or gray with sRGB's curve.
fn target(layout: Layout) -> ColorProfile {
    match layout {
        Layout::Gray | Layout::GrayAlpha => {
            let srgb = ColorProfile::new_srgb();
            let mut gray = ColorProfile::new_gray_with_gamma(2.2);
            gray.gray_trc = srgb.red_trc;
            gray
        }
        _ => ColorProfile::new_srgb(),
    }
}

fn apply_8(profile: &ColorProfile, curves: Option<&Curves>, layout: Layout, pixels: &mut [u8]) {
    let (to, options, channels) = (target(layout), options(profile), layout.channels());
    match curves {
        // Steps of 8 bits lie too far apart behind a curve.
        Some(curves) => {
            let Ok(transform) = profile.create_transform_16bit(layout, &to, layout, options) else { return };
            in_place(pixels, channels, |from, to| {
                let mut deep = vec![0; to.len()];
                transform.transform(&curves.apply_8(from, channels), &mut deep)?;
                to.iter_mut().zip(deep).for_each(|(to, value)| *to = to_8(value));
                Ok::<_, moxcms::CmsError>(())
            });
        }
        None => {
            let Ok(transform) = profile.create_transform_8bit(layout, &to, layout, options) else { return };
            in_place(pixels, channels, |from, to| transform.transform(from, to));
        }
    }
}

/// [`by_parts`], but for a transform that is sRGB's to itself.
fn in_place<E>(pixels: &mut [u8], channels: usize, transform: impl Fn(&[u8], &mut [u8]) -> Result<(), E>) {
    // Steps through all channels together and through each alone.
    let probe: Vec<u8> = (0..=channels)
        .flat_map(|alone| {
            (0..=15u8).flat_map(move |step| {
                (0..channels).map(move |c| if alone == c || alone == channels { 17 * step } else { 0 })
            })
        })
        .collect();
    let mut shown = vec![0; probe.len()];
    let same = transform(&probe, &mut shown).is_ok() && probe.iter().zip(&shown).all(|(a, b)| a.abs_diff(*b) <= SAME);
    if !same {
        by_parts(pixels, channels, transform);
    }
}

fn apply_16(profile: &ColorProfile, curves: Option<&Curves>, layout: Layout, pixels: &mut [u16]) {
    let channels = layout.channels();
    let transform = profile.create_transform_16bit(layout, &target(layout), layout, options(profile));
    let Ok(transform) = transform else { return };
    by_parts(pixels, channels, |from, to| match curves {
        Some(curves) => transform.transform(&curves.apply(from, channels), to),
        None => transform.transform(from, to),
    });
}

/// Transforms pixels in place, some at a time, so that no second image is needed. What cannot be transformed stays.
fn by_parts<T: Copy + Default, E>(
    pixels: &mut [T],
    channels: usize,
    transform: impl Fn(&[T], &mut [T]) -> Result<(), E>,
) {
    let mut to = vec![T::default(); (PIXELS * channels).min(pixels.len())];
    for part in pixels.chunks_mut(PIXELS * channels) {
        let to = &mut to[..part.len()];
        if transform(part, to).is_ok() {
            part.copy_from_slice(to);
        }
    }
}
