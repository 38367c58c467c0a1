//! Whose processor a device is, and which kernels are tried first there: the one table of such guesses. They decide until kernels
//! are measured, so that a first image is made in a good time.

use serde::{Deserialize, Serialize};

/// Makers of devices, as far as kernels differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceClass {
    /// NVIDIA's GPUs.
    Nvidia,
    /// AMD's GPUs.
    Amd,
    /// Intel's GPUs.
    Intel,
    /// Apple's GPUs.
    Apple,
    /// GPUs of phones: Qualcomm's, Arm's, Imagination's, Samsung's.
    Mobile,
    /// A browser, which does not tell.
    Browser,
    /// A software implementation.
    Cpu,
    /// Any other.
    #[default]
    Unknown,
}

impl DeviceClass {
    /// The class by PCI vendor, of GPUs.
    pub const fn of_vendor(vendor: u32) -> Self {
        match vendor {
            0x10de => DeviceClass::Nvidia,
            0x1002 | 0x1022 => DeviceClass::Amd,
            0x8086 => DeviceClass::Intel,
            0x106b => DeviceClass::Apple,
            0x5143 | 0x13b5 | 0x1010 | 0x144d => DeviceClass::Mobile,
            _ => DeviceClass::Unknown,
        }
    }

    /// Invocations that keep such a device busy, about, with as many sums to each as the tiled products have.
    pub(crate) const fn invocations(self) -> usize {
        self.habits().0
    }

    /// What a product costs in each tile of `workgroup_tile.rs`, largest first, next to the others.
    pub(crate) const fn tiles(self) -> [usize; 4] {
        self.habits().1
    }

    const fn habits(self) -> (usize, [usize; 4]) {
        match self {
            // 128x128, 64x64, 32x64, 32x32
            DeviceClass::Nvidia => (32_768, [8, 9, 12, 14]),
            DeviceClass::Amd => (16_384, [8, 9, 12, 16]),
            // 64 sums an invocation leave half of the lanes, or registers for memory.
            DeviceClass::Intel => (4_096, [14, 14, 12, 13]),
            // Mesa's compiler for the M1 moves some of 64 sums to memory.
            DeviceClass::Apple => (8_192, [12, 13, 10, 12]),
            DeviceClass::Mobile => (1_024, [20, 20, 12, 13]),
            DeviceClass::Browser | DeviceClass::Unknown => (8_192, [9, 9, 11, 13]),
            // It tries other kernels before.
            DeviceClass::Cpu => (1, [12, 11, 10, 10]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::DeviceClass;

    #[test]
    fn vendors_are_known_by_their_numbers() {
        assert_eq!(DeviceClass::of_vendor(0x10de), DeviceClass::Nvidia);
        assert_eq!(DeviceClass::of_vendor(0x1002), DeviceClass::Amd);
        assert_eq!(DeviceClass::of_vendor(0), DeviceClass::Unknown);
    }
}
