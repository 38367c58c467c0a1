//! Floats of 8 bits, as "FP8 Formats for Deep Learning" (arXiv 2209.05433) defines them. Half precision holds every value of both.

use half::f16;

/// `F8_E4M3`, PyTorch's `float8_e4m3fn`: a sign, 4 bits of exponent, 3 of mantissa; no infinity, one NaN of each sign.
pub(crate) fn e4m3(code: u8) -> f16 {
    let (sign, exponent, mantissa) = (u16::from(code & 0x80) << 8, u16::from(code >> 3 & 15), u16::from(code & 7));
    let size = match (exponent, mantissa) {
        (15, 7) => f16::NAN.to_bits(),
        // Subnormal numbers are multiples of 2^-9.
        (0, _) => f16::from_f32(f32::from(mantissa) / 512.0).to_bits(),
        // The exponent's bias is 7 here and 15 in half precision.
        _ => (exponent + 8) << 10 | mantissa << 7,
    };
    f16::from_bits(sign | size)
}

/// `F8_E5M2`, PyTorch's `float8_e5m2`: the upper half of a number in half precision.
pub(crate) fn e5m2(code: u8) -> f16 {
    f16::from_bits(u16::from(code) << 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value by the definition's formula.
    fn defined(code: u8, mantissa_bits: i32, bias: i32) -> f64 {
        let exponent = i32::from(code & 0x7f) >> mantissa_bits;
        let fraction = f64::from(code & ((1 << mantissa_bits) - 1)) / f64::from(1 << mantissa_bits);
        let size = match exponent {
            0 => fraction * 2f64.powi(1 - bias),
            _ => (1.0 + fraction) * 2f64.powi(exponent - bias),
        };
        if code & 0x80 == 0 { size } else { -size }
    }

    #[test]
    fn all_codes_are_the_definition_s() {
        for code in 0..=u8::MAX {
            let (a, b) = (e4m3(code).to_f64(), e5m2(code).to_f64());
            assert_eq!(e4m3(code).is_sign_negative(), code >= 0x80, "{code:#x}");
            assert_eq!(e5m2(code).is_sign_negative(), code >= 0x80, "{code:#x}");
            match code & 0x7f {
                0x7f => assert!(a.is_nan(), "{code:#x}"),
                _ => assert_eq!(a, defined(code, 3, 7), "{code:#x}"),
            }
            match code & 0x7f {
                0x7d.. => assert!(b.is_nan(), "{code:#x}"),
                0x7c => assert!(b.is_infinite(), "{code:#x}"),
                _ => assert_eq!(b, defined(code, 2, 15), "{code:#x}"),
            }
        }
        assert_eq!((e4m3(0x7e).to_f32(), e4m3(1).to_f32()), (448.0, 1.0 / 512.0));
        assert_eq!((e5m2(0x7b).to_f32(), e5m2(1).to_f32()), (57344.0, 1.0 / 65536.0));
    }
}
