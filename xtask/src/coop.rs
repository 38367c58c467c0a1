//! Kernels with cooperative matrices, on a driver of the CPU that has them: lavapipe of a pinned Mesa.

use crate::mesa::{Mesa, VERSION};
use crate::{Outcome, output, root, run};
use std::path::{Path, PathBuf};

/// The checks of every cooperative kernel, by a part of their ids.
const COOPERATIVE: &str = "cooperative";
/// Those of the smallest tiles: the others are the same text, which takes LLVM up to two minutes to compile.
const SMALL: &str = "small_cooperative";
/// Lanes of subgroups whose size varies, as AMD's does: workgroups have twice as many subgroups then as their tile has parts, since the
/// driver's have 8 lanes.
const VARYING: [&str; 4] = ["--cooperative", "8", "--lanes", "8,16"];
/// Matrices of 8 x 8.
const EIGHT: [&str; 2] = ["--cooperative", "8"];
/// Of 16 x 16, in units of 16 bytes as devices have them.
const SIXTEEN: [&str; 2] = ["--cooperative", "16"];
/// The same as WGSL can say them.
const UNPACKED: [&str; 3] = ["--cooperative", "16", "--unpacked"];
/// What the validation layer says of matrices that the driver does not list, and nothing else of their kernels.
const UNLISTED: [&str; 2] =
    ["VUID-RuntimeSpirv-OpTypeCooperativeMatrixKHR-10163", "VUID-RuntimeSpirv-OpCooperativeMatrixMulAddKHR-10060"];
/// One of them, to see that the validation layer is at work.
const CANARY: &str = "matmul/matmul:dtype=f16;kernel=small_cooperative;*";

/// Holds cooperative kernels to their reference: the smallest tiles of matrices of 8 x 8, which the driver offers, watched by Vulkan's
/// validation layer, with faults planted that must be noticed. With `every_size` all tiles, and also matrices of 16 x 16, which NVIDIA and AMD
/// have, packed and small ones as WGSL says them: LLVM takes three quarters of an hour for these.
pub fn check(every_size: bool) -> Outcome {
    let mesa = match Mesa::fetched() {
        Ok(mesa) => mesa,
        Err(why) if every_size => return Err(why),
        Err(why) => {
            println!("cooperative kernels are not checked: {why}");
            return Ok(());
        }
    };
    // The tests' own build of the program, where they run next: another would build most of its dependencies again.
    let packages: &[&str] =
        if every_size { &["--package", "pulid-cli", "--package", "pulid-conformance"] } else { &["--workspace"] };
    let build = [&["test", "--no-run", "--quiet"], packages].concat();
    run("cargo", &build)?;
    // LLVM compiles on one thread of a process: two processes take half the time.
    std::thread::scope(|scope| {
        let watched = scope.spawn(|| validated(&mesa, if every_size { COOPERATIVE } else { SMALL }));
        let others = planted(&mesa, &build).and_then(|()| conformance(&mesa, &VARYING, SMALL, None));
        let watched = watched.join().unwrap_or_else(|_| Err("the checks under the validation layer panicked".into()));
        watched.and(others)
    })?;
    if every_size {
        conformance(&mesa, &SIXTEEN, COOPERATIVE, None)?;
        conformance(&mesa, &UNPACKED, SMALL, None)?;
    }
    Ok(())
}

/// These checks with matrices of 8 x 8 as the driver lists them, under the validation layer.
fn validated(mesa: &Mesa, checks: &str) -> Outcome {
    let folder = root().join("target/coop");
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let folder = std::path::absolute(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    // What the driver does not list is what the layer is known to object to: were it silent, it would not be there.
    let canary = folder.join("canary.log");
    conformance(mesa, &SIXTEEN, CANARY, Some(&canary))?;
    let found = objections(&canary)?;
    if found.is_empty() {
        return Err(
            "Vulkan's validation layer does not object to matrices that the driver does not list: is it loaded?".into(),
        );
    }
    let other: Vec<_> = found.into_iter().filter(|text| !UNLISTED.iter().any(|known| text.contains(known))).collect();
    if !other.is_empty() {
        return Err(format!("Vulkan's validation layer objects, see {}:\n{}", canary.display(), other.join("\n")));
    }
    let log = folder.join("validation.log");
    conformance(mesa, &EIGHT, checks, Some(&log))?;
    match objections(&log)?.as_slice() {
        [] => {
            println!("Vulkan's validation layer has no objection");
            Ok(())
        }
        found => Err(format!("Vulkan's validation layer objects, see {}:\n{}", log.display(), found.join("\n"))),
    }
}

/// Every fault that is planted in a cooperative kernel must be noticed.
fn planted(mesa: &Mesa, build: &[&str]) -> Outcome {
    println!("$ faults cooperative   (lavapipe of Mesa {VERSION})");
    let mut command = mesa.command(&test_program(build, "faults")?);
    command.arg("cooperative").env("PULID_TEST_DEVICE", "llvmpipe").env("PULID_TEST_COOPERATIVE", "1");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err("a fault that was planted in a cooperative kernel went unnoticed".into()),
        Err(e) => Err(format!("Mesa {VERSION}'s loader cannot be started: {e}")),
    }
}

/// The program that cargo built of an integration test.
fn test_program(build: &[&str], test: &str) -> Outcome<PathBuf> {
    let listed =
        output("cargo", &[build, &["--message-format", "json"]].concat()).ok_or("cargo cannot list its tests")?;
    let messages = listed.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let programs = messages.filter(|m| m["target"]["name"] == test && m["target"]["kind"][0] == "test");
    let program = programs.filter_map(|m| m["executable"].as_str().map(PathBuf::from)).next();
    program.ok_or_else(|| format!("cargo built no test `{test}`"))
}

/// `pulid conformance` with these options, under the validation layer if there is a place for its messages.
fn conformance(mesa: &Mesa, options: &[&str], filter: &str, validation: Option<&Path>) -> Outcome {
    let said = options.join(" ");
    println!("$ pulid conformance --filter '{filter}' {said}   (lavapipe of Mesa {VERSION})");
    let mut command = mesa.command(&root().join("target/debug/pulid"));
    command.args(["conformance", "--device", "llvmpipe", "--filter", filter]).args(options);
    if let Some(log) = validation {
        mesa.validated(&mut command, log)?;
    }
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(format!("cooperative kernels fail with {said}")),
        Err(e) => Err(format!("Mesa {VERSION}'s loader cannot be started: {e}")),
    }
}

/// What the validation layer wrote, each objection once, in the order in which they came.
fn objections(log: &Path) -> Outcome<Vec<String>> {
    let text = std::fs::read_to_string(log).map_err(|e| format!("{}: {e}", log.display()))?;
    let mut found: Vec<String> = Vec::new();
    for line in text.lines().filter(|line| line.contains("VUID-") || line.starts_with("Validation Error")) {
        if !found.iter().any(|known| known == line) {
            found.push(line.to_owned());
        }
    }
    Ok(found)
}
