//! Checks that need no device, cheapest first.

use crate::{Outcome, output, root, run};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Crates that a browser build needs.
const BROWSER: [&str; 9] = [
    "pulid-tensor",
    "pulid-checkpoint",
    "pulid-ops",
    "pulid-graph",
    "pulid-engine",
    "pulid-models",
    "pulid",
    "pulid-conformance",
    "pulid-wasm",
];

/// Lines above which a source file is too large to find one's way in.
const LONGEST: usize = 900;

pub fn all() -> Outcome {
    file_sizes()?;
    layering()?;
    run("cargo", &["fmt", "--all", "--check"])?;
    run("cargo", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    let mut wasm = vec!["clippy", "--lib", "--target", "wasm32-unknown-unknown"];
    for package in &BROWSER {
        wasm.extend(["--package", package]);
    }
    // What is shared between threads natively is not there, where there are none.
    wasm.extend(["--", "-D", "warnings", "-A", "clippy::arc_with_non_send_sync"]);
    run("cargo", &wasm)
}

fn file_sizes() -> Outcome {
    let mut long = Vec::new();
    for folder in ["crates", "shaders", "xtask", "tools", "tests", "web"] {
        walk(&root().join(folder), &mut |path| {
            let is_source = path
                .extension()
                .is_some_and(|e| ["rs", "wgsl", "py", "js", "mjs", "css", "html"].iter().any(|known| e == *known));
            let lines = if is_source { std::fs::read_to_string(path).map_or(0, |t| t.lines().count()) } else { 0 };
            if lines > LONGEST {
                long.push(format!("{} has {lines} lines", path.display()));
            }
        });
    }
    if long.is_empty() { Ok(()) } else { Err(format!("split these files before {LONGEST} lines: {}", long.join("; "))) }
}

fn walk(folder: &Path, visit: &mut impl FnMut(&Path)) {
    let entries: Vec<PathBuf> = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    for path in entries {
        if path.is_dir() { walk(&path, visit) } else { visit(&path) }
    }
}

/// Only the engine may depend on wgpu, and tensor on nothing of ours: both are read from cargo's own metadata.
fn layering() -> Outcome {
    println!("checking that only pulid-engine reaches wgpu");
    let text = output("cargo", &["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .or_else(|| output("cargo", &["metadata", "--format-version", "1", "--no-deps"]))
        .ok_or("cargo metadata failed")?;
    let metadata: Value = serde_json::from_str(&text).map_err(|e| format!("cargo metadata: {e}"))?;
    violations(&dependencies(&metadata))
}

/// Package name to the names it depends on, in every section but dev-dependencies.
fn dependencies(metadata: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let mut all = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let needed = package["dependencies"].as_array().into_iter().flatten();
        let needed = needed.filter(|d| d["kind"] != "dev").map(|d| text(&d["name"])).collect();
        all.insert(text(&package["name"]), needed);
    }
    all
}

fn violations(dependencies: &BTreeMap<String, BTreeSet<String>>) -> Outcome {
    let mut found = Vec::new();
    for (package, needed) in dependencies {
        for name in needed {
            let gpu = name == "wgpu" || name.starts_with("wgpu-");
            if gpu && package != "pulid-engine" {
                found.push(format!("{package} depends on {name}; only pulid-engine may"));
            }
            let ours = name.starts_with("pulid");
            let lower = match package.as_str() {
                "pulid-tensor" => ours,
                "pulid-ops" => ours && name != "pulid-tensor",
                "pulid-checkpoint" => ours && name != "pulid-tensor",
                "pulid-hub" => ours && !["pulid-tensor", "pulid-checkpoint"].contains(&name.as_str()),
                "pulid-graph" => ours && !["pulid-tensor", "pulid-ops"].contains(&name.as_str()),
                "pulid-models" => name == "pulid-engine" || name == "pulid",
                _ => false,
            };
            if lower {
                found.push(format!("{package} depends on {name}, which stands above it"));
            }
        }
    }
    if found.is_empty() { Ok(()) } else { Err(found.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(package: &str, needed: &str) -> BTreeMap<String, BTreeSet<String>> {
        BTreeMap::from([(package.to_owned(), BTreeSet::from([needed.to_owned()]))])
    }

    #[test]
    fn a_second_user_of_wgpu_is_refused() {
        assert!(violations(&graph("pulid-models", "wgpu")).is_err());
        assert!(violations(&graph("pulid-cli", "wgpu-types")).is_err());
        assert!(violations(&graph("pulid-engine", "wgpu")).is_ok());
    }

    #[test]
    fn layers_do_not_turn_around() {
        assert!(violations(&graph("pulid-ops", "pulid-graph")).is_err());
        assert!(violations(&graph("pulid-graph", "pulid-ops")).is_ok());
    }
}
