//! The GPUs, and how Mesa's drivers are told of them.

use pulid_ops::DeviceClass;

/// A GPU that is compiled for.
#[derive(Debug)]
pub struct Gpu {
    /// Its name in the table and on the command line.
    pub name: &'static str,
    /// What people know it by.
    pub known_as: &'static str,
    /// By which kernels are offered.
    pub class: DeviceClass,
    /// Mesa's driver, `libvulkan_DRIVER.so`.
    pub driver: &'static str,
    /// The shim that stands for its kernel driver, `libSHIM_noop_drm_shim.so`.
    pub shim: &'static str,
    /// Environment by which the shim knows which GPU to be.
    pub environment: &'static [(&'static str, &'static str)],
    /// Size of the cooperative matrices that its compiler must turn into matrix instructions.
    pub matrices: bool,
}

/// Every GPU of the table: AMD's RDNA 2, 3 and 4, NVIDIA's Turing and Ampere, Apple's M1, Qualcomm's Adreno.
pub const GPUS: [Gpu; 7] = [
    amd("navi21", "AMD RDNA 2, Radeon RX 6800", false),
    amd("navi31", "AMD RDNA 3, Radeon RX 7900", true),
    amd("gfx1201", "AMD RDNA 4, Radeon RX 9070", true),
    nvidia("turing", "NVIDIA Turing, GeForce RTX 2080", &[("NOUVEAU_CHIPSET", "162")], false),
    nvidia("ampere", "NVIDIA Ampere, GeForce RTX 3090", &[("NOUVEAU_CHIPSET", "172")], true),
    Gpu {
        name: "m1",
        known_as: "Apple M1",
        class: DeviceClass::Apple,
        driver: "asahi",
        shim: "asahi",
        environment: &[],
        matrices: false,
    },
    Gpu {
        name: "adreno730",
        known_as: "Qualcomm Adreno 730",
        class: DeviceClass::Mobile,
        driver: "freedreno",
        shim: "freedreno",
        environment: &[("FD_GPU_ID", "730")],
        matrices: false,
    },
];

const fn amd(name: &'static str, known_as: &'static str, matrices: bool) -> Gpu {
    let environment: &[(&str, &str)] = match name.as_bytes() {
        b"navi21" => &[("AMDGPU_GPU_ID", "navi21"), ("RADV_DEBUG", "nocache")],
        b"navi31" => &[("AMDGPU_GPU_ID", "navi31"), ("RADV_DEBUG", "nocache")],
        _ => &[("AMDGPU_GPU_ID", "gfx1201"), ("RADV_DEBUG", "nocache")],
    };
    Gpu { name, known_as, class: DeviceClass::Amd, driver: "radeon", shim: "amdgpu", environment, matrices }
}

const fn nvidia(
    name: &'static str,
    known_as: &'static str,
    environment: &'static [(&'static str, &'static str)],
    matrices: bool,
) -> Gpu {
    Gpu { name, known_as, class: DeviceClass::Nvidia, driver: "nouveau", shim: "nouveau", environment, matrices }
}
