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

    /// What a product costs in each tile of `workgroup_tile.rs`, largest first, next to the others; `None` where the tile is left out.
    pub(crate) const fn tiles(self) -> [Option<usize>; 4] {
        self.habits().1
    }

    /// The widest heads whose sums attention keeps in registers, with 8 and with 4 rows of queries to an invocation; 0 for none. By Mesa's
    /// compilers, wider ones spill there.
    pub(crate) const fn widest_heads(self) -> [usize; 2] {
        match self {
            DeviceClass::Apple => [0, 32],
            DeviceClass::Mobile => [32, 64],
            _ => [64, 64],
        }
    }

    const fn habits(self) -> (usize, [Option<usize>; 4]) {
        match self {
            // 128x128, 64x64, 32x64, 32x32
            DeviceClass::Nvidia => (32_768, [Some(8), Some(9), Some(12), Some(14)]),
            DeviceClass::Amd => (16_384, [Some(8), Some(9), Some(12), Some(16)]),
            // 64 sums an invocation leave half of the lanes, or registers for memory.
            DeviceClass::Intel => (4_096, [Some(14), Some(14), Some(12), Some(13)]),
            // The M1's registers hold no 64 sums and what feeds them: Mesa's compiler moves some to memory, in the smallest tile too.
            DeviceClass::Apple => (8_192, [None, None, Some(10), None]),
            DeviceClass::Mobile => (1_024, [Some(20), Some(20), Some(12), Some(13)]),
            DeviceClass::Browser | DeviceClass::Unknown => (8_192, [Some(9), Some(9), Some(11), Some(13)]),
            // It tries other kernels before.
            DeviceClass::Cpu => (1, [Some(12), Some(11), Some(10), Some(10)]),
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
