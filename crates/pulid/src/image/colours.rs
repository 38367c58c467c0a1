//! What a photo's file says of its colours beside or in place of an ICC profile.

use ::image::{DynamicImage, ImageFormat};
use exif::{In, Tag, Value};
use moxcms::{
    Chromaticity, CicpColorPrimaries, CicpProfile, ColorPrimaries, ColorProfile, MatrixCoefficients, ToneReprCurve,
    TransferCharacteristics, XyY,
};

/// What is in force: the first of these that a file has (PNG, 3rd edition, 4.3), an EXIF block last.
#[derive(Debug)]
pub(super) enum Colours {
    /// sRGB, or nothing is said.
    Srgb,
    /// An ICC profile.
    Profile(Vec<u8>),
    /// A space that is named or given by numbers, for colours and for gray.
    Space(Box<ColorProfile>),
    /// Brightness beyond white, as the text says, which no map to sRGB is agreed on for.
    Hdr(&'static str),
}

impl Colours {
    /// Those of a file of this format, with the ICC profile and the EXIF block that its decoder found.
    pub fn of(format: ImageFormat, bytes: &[u8], icc: Option<Vec<u8>>, exif: Option<Vec<u8>>) -> Colours {
        let mut said = PngColours::default();
        if format == ImageFormat::Png {
            said = PngColours::read(bytes);
        }
        if let Some(found) = said.code_points.and_then(code_points) {
            return found;
        }
        if let Some(icc) = icc {
            return Colours::Profile(icc);
        }
        if said.srgb {
            return Colours::Srgb;
        }
        if let Some(gamma) = said.gamma {
            return numbers(gamma, said.chromaticities);
        }
        match exif.is_some_and(is_adobe_rgb) {
            true => Colours::Space(Box::new(ColorProfile::new_adobe_rgb())),
            false => Colours::Srgb,
        }
    }
}

/// The profile of a space for the pixels of an image: of gray its curve alone.
pub(super) fn for_pixels(space: ColorProfile, image: &DynamicImage) -> ColorProfile {
    if image.color().has_color() {
        return space;
    }
    let mut gray = ColorProfile::new_gray_with_gamma(2.2);
    gray.gray_trc = space.red_trc;
    gray
}

/// The chunks of a PNG file: name, length as it is told, and content, which ends where the file does.
pub(super) fn png_chunks(bytes: &[u8]) -> impl Iterator<Item = ([u8; 4], usize, &[u8])> {
    // Eight bytes of signature; then a length, a name of four bytes, the content and its checksum.
    let mut rest = bytes.get(8..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (&[a, b, c, d, name @ ..], content) = rest.split_first_chunk::<8>()?;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        rest = length.checked_add(4).and_then(|skip| content.get(skip..)).unwrap_or_default();
        Some((name, length, content.get(..length).unwrap_or(content)))
    })
}

/// What a PNG file says of its colours before its pixels.
#[derive(Default)]
struct PngColours {
    /// `cICP`: primaries, transfer, matrix, whether the range is full.
    code_points: Option<[u8; 4]>,
    /// `sRGB`.
    srgb: bool,
    /// `gAMA`, in 100000ths: the exponent of the encoding.
    gamma: Option<u32>,
    /// `cHRM`, in 100000ths: x and y of white, red, green, blue.
    chromaticities: Option<[u32; 8]>,
}

impl PngColours {
    fn read(bytes: &[u8]) -> PngColours {
        let mut found = PngColours::default();
        for (name, _, content) in png_chunks(bytes).take_while(|(name, ..)| name != b"IDAT") {
            match &name {
                b"cICP" => found.code_points = content.try_into().ok(),
                b"sRGB" => found.srgb = true,
                b"gAMA" => found.gamma = content.try_into().ok().map(u32::from_be_bytes),
                b"cHRM" if content.len() == 32 => {
                    let mut values = content.as_chunks::<4>().0.iter().map(|word| u32::from_be_bytes(*word));
                    found.chromaticities = Some(std::array::from_fn(|_| values.next().unwrap_or(0)));
                }
                _ => {}
            }
        }
        found
    }
}

/// The colours that ITU-T H.273's numbers name; `None` for those that name none, or none of RGB.
fn code_points([primaries, transfer, matrix, full]: [u8; 4]) -> Option<Colours> {
    let color_primaries = CicpColorPrimaries::try_from(primaries).ok()?;
    let transfer_characteristics = TransferCharacteristics::try_from(transfer).ok()?;
    // PNG's pixels are RGB, which is the matrix 0; a narrow range is for video.
    if matrix != 0 || full != 1 {
        return None;
    }
    match transfer_characteristics {
        TransferCharacteristics::Smpte2084 => return Some(Colours::Hdr("PQ")),
        TransferCharacteristics::Hlg => return Some(Colours::Hdr("HLG")),
        _ => {}
    }
    let numbers = CicpProfile {
        color_primaries,
        transfer_characteristics,
        matrix_coefficients: MatrixCoefficients::Identity,
        full_range: true,
    };
    let mut profile = ColorProfile::new_srgb();
    profile.red_trc = None;
    // What it returns is no in every case; a space that it knows has a curve afterwards.
    profile.update_rgb_colorimetry_from_cicp(numbers);
    profile.red_trc.is_some().then(|| Colours::Space(Box::new(profile)))
}

/// The colours of a gamma and chromaticities in 100000ths, sRGB's where there are none. Numbers that mean nothing are none.
fn numbers(gamma: u32, chromaticities: Option<[u32; 8]>) -> Colours {
    const SRGB: [u32; 8] = [31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000];
    /// Of sRGB's exponent, which stands for its curve, and of its chromaticities, which are written with few digits.
    const NEAR: [u32; 2] = [1000, 500];
    const SRGB_GAMMA: u32 = 45455;
    let points = chromaticities.unwrap_or(SRGB);
    let same = |(a, b): (&u32, u32)| a.abs_diff(b) <= NEAR[1];
    if gamma.abs_diff(SRGB_GAMMA) <= NEAR[0] && points.iter().zip(SRGB).all(same) {
        return Colours::Srgb;
    }
    // Exponents from 1/5 to 5 are those of displays and cameras; the white point has a brightness.
    let sensible = (20_000..=500_000).contains(&gamma) && points.chunks(2).all(|p| p[1] > 0 && p[0] + p[1] <= 100_000);
    if !sensible || points.iter().any(|&value| value > 100_000) {
        return Colours::Srgb;
    }
    let [white, red, green, blue] = [0, 2, 4, 6].map(|i| [points[i], points[i + 1]].map(|v| f64::from(v) / 1e5));
    let point = |[x, y]: [f64; 2]| Chromaticity { x: x as f32, y: y as f32 };
    let mut profile = ColorProfile::new_srgb();
    let white = XyY { x: white[0], y: white[1], yb: 1.0 };
    profile.update_rgb_colorimetry(white, ColorPrimaries { red: point(red), green: point(green), blue: point(blue) });
    let curve = ToneReprCurve::Parametric(vec![1e5 / gamma as f32]);
    profile.red_trc = Some(curve.clone());
    profile.green_trc = Some(curve.clone());
    profile.blue_trc = Some(curve);
    Colours::Space(Box::new(profile))
}

/// Whether an EXIF block says Adobe RGB as cameras do: a colour space that is not sRGB, and DCF's option file (`R03`) for which it is.
fn is_adobe_rgb(exif: Vec<u8>) -> bool {
    const UNCALIBRATED: u32 = 0xffff;
    let Ok(read) = exif::Reader::new().read_raw(exif) else { return false };
    let space = read.get_field(Tag::ColorSpace, In::PRIMARY).and_then(|field| field.value.get_uint(0));
    let option = read.get_field(Tag::InteroperabilityIndex, In::PRIMARY).map(|field| &field.value);
    let is_r03 = matches!(option, Some(Value::Ascii(texts)) if texts.iter().any(|text| text.starts_with(b"R03")));
    space == Some(UNCALIBRATED) && is_r03
}
