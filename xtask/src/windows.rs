//! The Windows program without Windows: built here, run by Wine on lavapipe, on Vulkan and on Direct3D 12.
//!
//! It shows the program's own Windows code and wgpu's Direct3D 12 with Microsoft's compilers; not Microsoft's runtime, nor a driver of
//! Direct3D: Wine makes Vulkan of it.

use crate::fetch::fetch;
use crate::setup::{self, Setup};
use crate::wine::Wine;
use crate::{Outcome, output, root, run};
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-pc-windows-gnu";

/// A library of Microsoft's in a package of PyPI.
struct Library {
    url: &'static str,
    hash: &'static str,
    /// Its path in the package.
    path: &'static str,
    name: &'static str,
}

const FILES: &str = "https://files.pythonhosted.org/packages";

/// FXC, without which Wine's own compiler would compile for Direct3D, which knows too little; and DXC with its validator.
const LIBRARIES: [Library; 3] = [
    Library {
        url: "25/3c/17fa20cd2a9a0bc412299e3ea6c8e28369f5a39c3512022bd50d92433828/kivy_deps_angle-0.5.0-cp310-cp310-win_amd64.whl",
        hash: "37f68b7685f52266c643536d1c8b7f83d8cc869c342505f51d9b3e9cf114b707",
        path: "kivy_deps_angle-0.5.0.data/data/share/angle/bin/d3dcompiler_47.dll",
        name: "d3dcompiler_47.dll",
    },
    Library {
        url: COMPUSHADY,
        hash: COMPUSHADY_HASH,
        path: "compushady/backends/dxcompiler.dll",
        name: "dxcompiler.dll",
    },
    Library { url: COMPUSHADY, hash: COMPUSHADY_HASH, path: "compushady/backends/dxil.dll", name: "dxil.dll" },
];
const COMPUSHADY: &str =
    "11/e3/bf3d0ace899f17480c23d00b6b2ccdcaf7c94507601f28016c84d9f34b7e/compushady-0.17.5-cp310-cp310-win_amd64.whl";
const COMPUSHADY_HASH: &str = "3a1772d35f9da6f27983fafb9f84cb8c550817ed167943680d0d523e351d66a3";

/// What lies in `target/windows`, which the program sees as its own folder.
const FOLDER: &str = "target/windows";

/// The greatest difference of two pixels' values on Direct3D, whose compiler orders sums in its own way.
const TOLERANCE: u8 = 1;

/// Builds the program for Windows; makes the demo's image with it on Vulkan, where it must be that of the program for this system, and on
/// Direct3D 12, within [`TOLERANCE`]; compiles every shader by DXC; and runs the conformance suite on Direct3D 12.
pub fn check(setup: &Setup) -> Outcome {
    setup.windows_linker()?;
    setup::target(TARGET, "Windows builds")?;
    let wine = Wine::fetched()?;
    let folder = root().join(FOLDER);
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    LIBRARIES.iter().try_for_each(|library| library.fetched(&folder))?;
    run("cargo", &["build", "--release", "--package", "pulid-cli"])?;
    run("cargo", &["build", "--release", "--package", "pulid-cli", "--target", TARGET])?;
    let built = root().join("target").join(TARGET).join("release/pulid.exe");
    copy(&built, &folder.join("pulid.exe"))?;
    images(&wine, &folder)?;
    dxc(&wine)?;
    conformance(&wine)
}

/// The demo's image, three times.
fn images(wine: &Wine, folder: &Path) -> Outcome {
    let name = |what: &str| format!("{FOLDER}/{what}.png");
    let [native, vulkan, direct3d] = ["native", "vulkan", "dx12"].map(name);
    fn generate<'a>(program: &'a str, output: &'a str) -> Vec<&'a str> {
        let person = ["generate", "--id", "examples/faces/ada.jpg", "--prompt", crate::DEMO_PROMPT];
        [&[program], &person[..], &["--output", output]].concat()
    }
    let exe = format!("{FOLDER}/pulid.exe");
    println!("The demo's image by the program for this system, and by that for Windows on Vulkan:");
    wine.check(wine.native(&generate("target/release/pulid", &native), &[]), "the program for this system")?;
    wine.check(wine.windows(&generate(&exe, &vulkan), &[("WGPU_BACKEND", "vulkan")]), "the program on Vulkan")?;
    println!("And on Direct3D 12:");
    wine.check(wine.windows(&generate(&exe, &direct3d), &DIRECT3D), "the program on Direct3D 12")?;
    let pixels = |path: &str| {
        let image = image::open(root().join(path)).map_err(|e| format!("{path}: {e}"))?;
        Ok::<_, String>(image.into_rgb8().into_raw())
    };
    let expected = pixels(&native)?;
    for (path, tolerance) in [(&vulkan, 0), (&direct3d, TOLERANCE)] {
        let actual = pixels(path)?;
        let worst = actual.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(u8::MAX);
        println!("{path} differs from {native} by at most {worst} of 255");
        if actual.len() != expected.len() || worst > tolerance {
            return Err(format!("{path} is not the image of {native}; see {}", folder.display()));
        }
    }
    Ok(())
}

/// What chooses Direct3D 12 and Microsoft's FXC: Wine offers shader model 5.1, which DXC does not compile for.
const DIRECT3D: [(&str, &str); 3] =
    [("WGPU_BACKEND", "dx12"), ("WGPU_DX12_COMPILER", "Fxc"), ("WINEDLLOVERRIDES", "d3dcompiler_47=n")];

/// Every permutation of every shader by DXC.
fn dxc(wine: &Wine) -> Outcome {
    let build = ["test", "--no-run", "--package", "pulid-ops", "--test", "dxc", "--target", TARGET];
    run("cargo", &build)?;
    let listed = output("cargo", &[&build[..], &["--message-format", "json"]].concat());
    let listed = listed.ok_or("cargo cannot list its tests")?;
    let messages = listed.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let program = messages.filter_map(|m| m["executable"].as_str().map(PathBuf::from)).next();
    let program = program.ok_or("cargo built no test `dxc`")?;
    copy(&program, &root().join(FOLDER).join("dxc.exe"))?;
    let library = format!(r"Z:\repository\{}\dxcompiler.dll", FOLDER.replace('/', r"\"));
    let test = wine.windows(&[&format!("{FOLDER}/dxc.exe"), "--ignored", "--nocapture"], &[("PULID_DXC", &library)]);
    wine.check(test, "compiling the shaders by DXC")
}

/// The suite on Direct3D 12; its report can become a column of docs/conformance.md.
fn conformance(wine: &Wine) -> Outcome {
    let report = format!("{FOLDER}/dx12.json");
    let exe = format!("{FOLDER}/pulid.exe");
    let suite = wine.windows(&[&exe, "conformance", "--report", &report], &DIRECT3D);
    wine.check(suite, "conformance on Direct3D 12")?;
    println!(
        "{report} becomes a column of docs/conformance.md by `pulid conformance --summarise {report} --output \
         tests/conformance/wine-dx12.json` and `cargo xtask bless`"
    );
    Ok(())
}

impl Library {
    /// Fetches the library into a folder where it is not there yet.
    fn fetched(&self, folder: &Path) -> Outcome {
        let to = folder.join(self.name);
        if to.exists() {
            return Ok(());
        }
        let package = folder.join(self.url.rsplit('/').next().unwrap_or(self.name));
        fetch(&format!("{FILES}/{}", self.url), self.hash, &package)?;
        let mut unzip = Command::new("unzip");
        match unzip.args(["-q", "-o", "-j"]).arg(&package).arg(self.path).arg("-d").arg(folder).status() {
            Ok(status) if status.success() => Ok(()),
            _ => Err(format!("{} cannot be unpacked; this needs unzip", package.display())),
        }
    }
}

fn copy(from: &Path, to: &Path) -> Outcome {
    std::fs::copy(from, to).map(|_| ()).map_err(|e| format!("{} to {}: {e}", from.display(), to.display()))
}
