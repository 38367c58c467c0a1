//! ICC profiles whose colours are tables, made ready for the colour library.
//!
//! moxcms samples all of a conversion on 33 points an axis and interpolates in between. That is right to a level where the table is even
//! between its own points, and wrong by up to 8 in dark colours where the curves before it are steep, as those of gammas are. So these are
//! applied to the pixels here, and the library is given the table without them, in 16 bits. It also tells how Lab is stored by the profile's
//! version, where LittleCMS and the standard tell it by the table's type (`lut16Type` alone has the legacy encoding), which is up to 5 levels.
//!
//! What is left is interpolation: LittleCMS' in tetrahedra, moxcms' in cubes where the table gives Lab, up to 2 levels of 255 where its points
//! lie far apart, 3 where it has 8 bits. Colours beyond sRGB are cut off point by point by either, so that there both are up to 20 levels from what the
//! profile says. Curves of `lutAToBType` stay in the table.

use moxcms::{ColorProfile, DataColorSpace, LutDataType, LutStore, LutType, LutWarehouse, ProfileVersion};

/// The curves before a table, one for each channel: outputs for inputs from 0 to 65535, evenly apart.
#[derive(Debug)]
pub(super) struct Curves(Vec<Vec<u16>>);

/// Where the version lies in a profile's header, and those of both ways to store Lab.
const VERSION: usize = 8;
const LEGACY: [u8; 4] = [2, 0x40, 0, 0];
const CURRENT: [u8; 4] = [4, 0x40, 0, 0];

/// A profile without the curves before its table, and these, where it has any.
pub(super) fn parse(icc: &[u8]) -> Option<(ColorProfile, Option<Curves>)> {
    let mut profile = ColorProfile::new_from_slice(icc).ok()?;
    if let Some(legacy) = stores_legacy_lab(&mut profile)
        && legacy != (profile.version() < ProfileVersion::V4_0)
    {
        let mut icc = icc.to_vec();
        icc.get_mut(VERSION..VERSION + 4)?.copy_from_slice(if legacy { &LEGACY } else { &CURRENT });
        profile = ColorProfile::new_from_slice(&icc).ok()?;
    }
    let curves = match table(&mut profile) {
        Some(LutWarehouse::Lut(lut)) => taken_from(lut),
        _ => None,
    };
    Some((profile, curves))
}

/// The table that is used: for perceptual rendering, as viewers do, or the one that there is.
fn table(profile: &mut ColorProfile) -> Option<&mut LutWarehouse> {
    if profile.lut_a_to_b_perceptual.is_none() {
        profile.lut_a_to_b_perceptual =
            profile.lut_a_to_b_colorimetric.clone().or_else(|| profile.lut_a_to_b_saturation.clone());
    }
    profile.lut_a_to_b_perceptual.as_mut()
}

/// Whether the table gives Lab in the legacy 16 bits, where 100 is 65280; nothing where it gives no Lab.
fn stores_legacy_lab(profile: &mut ColorProfile) -> Option<bool> {
    if profile.pcs != DataColorSpace::Lab {
        return None;
    }
    table(profile).map(|table| matches!(table, LutWarehouse::Lut(lut) if lut.lut_type == LutType::Lut16))
}

/// Takes the curves before a table away; none where they change nothing, or are not whole.
fn taken_from(lut: &mut LutDataType) -> Option<Curves> {
    let (channels, entries) = (usize::from(lut.num_input_channels), usize::from(lut.num_input_table_entries));
    if channels == 0 || entries < 2 {
        return None;
    }
    let (values, straight) = match &lut.input_table {
        LutStore::Store8(values) => {
            let values: Vec<u16> = values.iter().map(|&v| u16::from(v) * 257).collect();
            (values, LutStore::Store8((0..channels).flat_map(|_| 0..=255).collect()))
        }
        LutStore::Store16(values) => (values.clone(), LutStore::Store16([0, u16::MAX].repeat(channels))),
    };
    if values.len() != channels * entries {
        return None;
    }
    let curves = Curves(values.chunks(entries).map(<[u16]>::to_vec).collect());
    if curves.are_straight() {
        return None;
    }
    lut.num_input_table_entries = if matches!(straight, LutStore::Store8(_)) { 256 } else { 2 };
    lut.input_table = straight;
    Some(curves)
}

impl Curves {
    /// Whether nothing is changed by more than the rounding of its entries.
    fn are_straight(&self) -> bool {
        self.0.iter().all(|curve| {
            let last = curve.len() - 1;
            curve.iter().enumerate().all(|(i, &v)| (i * 65535).abs_diff(usize::from(v) * last) <= 2 * last)
        })
    }

    /// The value behind a channel's curve; channels beyond the curves, opacity, stay as they are.
    fn at(&self, channel: usize, value: u16) -> u16 {
        let Some(curve) = self.0.get(channel) else { return value };
        let place = usize::from(value) * (curve.len() - 1);
        let (index, rest) = (place / 65535, (place % 65535) as i64);
        let (low, high) = (i64::from(curve[index]), i64::from(curve[(index + 1).min(curve.len() - 1)]));
        // Between two numbers of 16 bits.
        (low + ((high - low) * rest + 32767).div_euclid(65535)) as u16
    }

    /// Pixels of so many channels behind the curves.
    pub fn apply(&self, pixels: &[u16], channels: usize) -> Vec<u16> {
        pixels.iter().enumerate().map(|(i, &value)| self.at(i % channels, value)).collect()
    }

    /// [`apply`](Curves::apply) to values of 8 bits.
    pub fn apply_8(&self, pixels: &[u8], channels: usize) -> Vec<u16> {
        let tables: Vec<Vec<u16>> =
            (0..channels).map(|channel| (0..=255).map(|v: u16| self.at(channel, v * 257)).collect()).collect();
        pixels.iter().enumerate().map(|(i, &value)| tables[i % channels][usize::from(value)]).collect()
    }
}

/// 16 bits rounded to 8.
pub(super) fn to_8(value: u16) -> u8 {
    ((u32::from(value) + 128) / 257) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_followed_between_their_points_and_opacity_is_left() {
        let curves = Curves(vec![vec![0, 65535], vec![65535, 0], vec![0, 10000, 65535]]);
        for (channel, value, want) in [
            (0, 12345, 12345),
            (0, 65535, 65535),
            (1, 0, 65535),
            (1, 65535, 0),
            (1, 100, 65435),
            (2, 32768, 10001),
            (2, 65535, 65535),
            (3, 777, 777),
        ] {
            assert_eq!(curves.at(channel, value), want, "{channel} {value}");
        }
        assert_eq!(curves.apply_8(&[255, 255, 255, 3], 4), [65535, 0, 65535, 771]);
        assert_eq!(curves.apply(&[65535, 65535, 65535, 3], 4), [65535, 0, 65535, 3]);
        assert!(!curves.are_straight());
        let line = (0..256).map(|i| i * 257).collect();
        assert!(Curves(vec![line, vec![0, 65535], vec![1, 32767, 65535]]).are_straight());
        assert_eq!([0, 128, 129, 65535].map(to_8), [0, 0, 1, 255]);
    }
}
