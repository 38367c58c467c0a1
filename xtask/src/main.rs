//! Developer commands: `cargo xtask demo | test | check | coop | gpu-stats | windows | web | bench-page | page-sdxl | random-model | export-conformance | bless`. Each installs what a fresh Debian or Ubuntu lacks,
//! shows the commands first, and asks before it uses sudo.

mod bench_page;
mod check;
mod coop;
mod debian;
mod dependencies;
mod documents;
mod fetch;
mod gpu_stats;
mod mesa;
mod page_sdxl;
mod random_model;
mod setup;
mod windows;
mod wine;

use setup::Setup;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

type Outcome<T = ()> = Result<T, String>;

const HELP: &str = "\
usage: cargo xtask COMMAND [--yes]

  --yes   install what is missing through sudo without asking; so does the environment variable CI

  demo    make an image with the models in the repository
  test    every test: format, lints, layering, wasm, unit tests, every kernel, every network, the page in a browser
  web [PORT | build]
          build the page as a static site in target/web, and serve it on loopback (port 8080), or only build it
  bench-page [serve [PORT]]
          time kernels in headless Chromium beside ONNX Runtime Web, which is fetched for it, or serve that page for a browser with a GPU
  page-sdxl DIR
          make SDXL's real shapes with random weights in 4 bits, and load and run them in headless Chromium: memory of the tab, and the
          result beside the native one
  check   the quick part of `test`: format, file sizes, layering, lints, wasm
  coop    the kernels with cooperative matrices, of 8 x 8 and 16 x 16, on a driver of the CPU that is fetched for it; `test` runs the first
  gpu-stats [--bless] [--dump KERNEL] [--gpu GPU]
          what the compilers of seven GPUs make of every kernel, without these GPUs: compared with tests/snapshots/gpu_stats.txt,
          which --bless renews; --dump shows the assembly of kernels whose name holds KERNEL, --gpu one GPU alone
  windows the program for Windows under Wine, which is fetched for it: the demo's image on Vulkan and on Direct3D 12, the kernels'
          suite on Direct3D 12, every shader by Microsoft's DXC
  random-model [--shapes] NAME... DIR
          write checkpoints of the published networks' real names and shapes with random weights
  export-conformance DIR
          write every kernel's checks as JSON, data and WGSL, for runners such as web/conformance.mjs
  bless   accept what tests/snapshots, docs/operators.md and the files made from the list of settings would be now; look at the difference before you commit it
";

/// What the demo shows, in words that the mini models were trained on.
const DEMO_PROMPT: &str = "an oil painting of a person, smiling, in a garden, soft light";

fn main() -> ExitCode {
    let (flags, arguments): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|a| a == "--yes");
    let setup = Setup::new(!flags.is_empty());
    let command = arguments.first().cloned().unwrap_or_default();
    let result = match command.as_str() {
        "demo" => demo(&setup),
        "test" => test(&setup),
        "check" => setup::wasm_target().and_then(|()| check::all()),
        "coop" => coop::check(true),
        "windows" => windows::check(&setup),
        "gpu-stats" => gpu_stats::command(&arguments[1..]),
        "web" => web(&setup, arguments.get(1).map(String::as_str)),
        "bench-page" => bench_page::command(&setup, &arguments[1..]),
        "page-sdxl" => page_sdxl::command(&setup, &arguments[1..]),
        "bless" => bless(),
        "export-conformance" => match arguments.get(1) {
            Some(folder) => run("cargo", &["run", "--package", "pulid-cli", "--", "conformance", "--export", folder]),
            None => Err("name a new folder".into()),
        },
        "random-model" => random_model::make(&arguments[1..]),
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask {command}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The repository's root.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs a program in the root with its output shown.
fn run(program: &str, arguments: &[&str]) -> Outcome {
    println!("$ {program} {}", arguments.join(" "));
    let status = Command::new(program).args(arguments).current_dir(root()).status();
    let status = status.map_err(|e| format!("{program} cannot be started: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("`{program} {}` failed ({status})", arguments.join(" "))) }
}

/// What a program prints, or nothing when it fails or does not exist.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).current_dir(root()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn test(setup: &Setup) -> Outcome {
    setup.vulkan_driver()?;
    setup.shader_validators();
    setup::wasm_target()?;
    setup.browser()?;
    check::all()?;
    // The page's tests are about what a server would serve.
    web(setup, Some("build"))?;
    coop::check(false)?;
    gpu_stats::check()?;
    // The runner's own closing lines end the output; a failure anywhere fails the whole.
    run("cargo", &["test", "--workspace"])
}

/// The page: built, and served unless only that is asked for.
fn web(setup: &Setup, what: Option<&str>) -> Outcome {
    setup::wasm_target()?;
    setup.wasm_optimiser();
    let verb = what.filter(|w| *w == "build").unwrap_or("serve");
    let run_site = ["run", "--quiet", "--package", "pulid-site", "--", verb];
    let port = what.filter(|w| *w != "build");
    run("cargo", &run_site.into_iter().chain(port).collect::<Vec<_>>())
}

fn bless() -> Outcome {
    let tests = [
        ["pulid-ops", "translations"],
        ["pulid-models", "plans"],
        ["pulid-models", "published"],
        ["pulid-conformance", "docs"],
        ["pulid", "settings"],
    ];
    for [package, test] in tests {
        println!("$ INSTA_UPDATE=always PULID_BLESS=1 cargo test -p {package} --test {test}");
        let mut command = Command::new("cargo");
        command.args(["test", "--quiet", "--package", package, "--test", test]);
        let status = command.env("INSTA_UPDATE", "always").env("PULID_BLESS", "1").current_dir(root()).status();
        if !status.is_ok_and(|s| s.success()) {
            return Err(format!("the test `{test}` fails for another reason; see above"));
        }
    }
    run("git", &["status", "--short", "tests/snapshots", "docs", "web/pulid"])
}

fn demo(setup: &Setup) -> Outcome {
    let parts = ["sdxl/unet/diffusion_pytorch_model.safetensors", "pulid_v1.1.safetensors", "eva_clip.safetensors"];
    if let Some(missing) = parts.iter().find(|part| !root().join("models/mini").join(part).is_file()) {
        return Err(format!(
            "models/mini/{missing} is not in the repository yet: the mini models are still being trained \
             (tools/mini/), so there is nothing to show. `cargo xtask test` runs everything else"
        ));
    }
    setup.vulkan_driver()?;
    run("cargo", &["build", "--release", "--package", "pulid-cli"])?;
    let pulid = root().join("target/release/pulid");
    let pulid = pulid.to_string_lossy();
    let person = ["generate", "--id", "examples/faces/cleo.jpg", "--output", "demo.png"];
    // The seed is one of those whose face is clearest.
    run(&pulid, &[&person[..], &["--prompt", DEMO_PROMPT, "--seed", "12"]].concat())?;
    println!("demo.png shows the person of examples/faces/cleo.jpg");
    Ok(())
}
