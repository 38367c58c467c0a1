//! Checks that need no device, cheapest first.

use crate::{Outcome, dependencies, documents, output, root, run};
use serde_json::Value;
use std::collections::BTreeSet;
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

/// What the mini models may weigh, in bytes: every clone of the repository carries them.
const MINI_MODELS: u64 = 40_000_000;

/// Lines above which a source file is too large to find one's way in.
const LONGEST: usize = 900;

pub fn all() -> Outcome {
    file_sizes()?;
    mini_models()?;
    layering()?;
    documents::check()?;
    dependencies::check()?;
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

fn mini_models() -> Outcome {
    let mut bytes = 0;
    walk(&root().join("models/mini"), &mut |path| bytes += path.metadata().map_or(0, |m| m.len()));
    if (1..=MINI_MODELS).contains(&bytes) {
        Ok(())
    } else {
        Err(format!("models/mini has {bytes} bytes; it should have some, and at most {MINI_MODELS}"))
    }
}

fn walk(folder: &Path, visit: &mut impl FnMut(&Path)) {
    let entries: Vec<PathBuf> = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    for path in entries {
        // What cargo built in a crate outside the workspace is nobody's source.
        match path.is_dir() {
            true if path.join("CACHEDIR.TAG").exists() => {}
            true => walk(&path, visit),
            false => visit(&path),
        }
    }
}

/// What each crate may depend on, and with it on all that lies below: the layers of docs/ARCHITECTURE.md.
const LAYERS: [(&str, &[&str]); 17] = [
    ("pulid-tensor", &[]),
    ("pulid-checkpoint", &["pulid-tensor"]),
    ("pulid-ops", &["pulid-tensor"]),
    ("pulid-graph", &["pulid-ops"]),
    ("pulid-engine", &["pulid-graph"]),
    ("pulid-models", &["pulid-graph", "pulid-checkpoint"]),
    ("pulid", &["pulid-models", "pulid-engine"]),
    ("pulid-conformance", &["pulid-engine", "pulid-ops", "pulid-checkpoint"]),
    ("pulid-gpustats", &["pulid-engine"]),
    ("pulid-hub", &["pulid-tensor"]),
    ("pulid-evaluate", &["pulid"]),
    ("pulid-train", &["pulid"]),
    ("pulid-cli", &["pulid-train", "pulid-evaluate", "pulid-conformance", "pulid-hub"]),
    ("pulid-wasm", &["pulid", "pulid-conformance"]),
    ("pulid-site", &[]),
    ("pulid-fuzz", &["pulid"]),
    ("xtask", &["pulid-checkpoint"]),
];

/// What tests alone reach beyond that: the page's are about the same images and kernels as the native ones.
const TESTS_ALONE: [(&str, &[&str]); 1] = [("pulid-site", &["pulid", "pulid-conformance"])];

/// One package's need of another.
struct Dependency {
    package: String,
    needs: String,
    for_tests: bool,
}

/// Only the engine may depend on wgpu, and no crate of ours on one that stands above or beside it, in tests neither: read from
/// cargo's own metadata.
fn layering() -> Outcome {
    println!("checking that only pulid-engine reaches wgpu, and no crate what stands above it");
    let text = output("cargo", &["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .or_else(|| output("cargo", &["metadata", "--format-version", "1", "--no-deps"]))
        .ok_or("cargo metadata failed")?;
    let metadata: Value = serde_json::from_str(&text).map_err(|e| format!("cargo metadata: {e}"))?;
    violations(&needs_of_packages(&metadata))
}

/// What the workspace's packages need, in every section.
fn needs_of_packages(metadata: &Value) -> Vec<Dependency> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let needs = packages.flat_map(|p| p["dependencies"].as_array().into_iter().flatten().map(move |d| (p, d)));
    needs
        .map(|(package, d)| Dependency {
            package: text(&package["name"]),
            needs: text(&d["name"]),
            for_tests: d["kind"] == "dev",
        })
        .collect()
}

/// Adds to `found` what `allowed` names and all that lies below.
fn reach(allowed: &[&'static str], found: &mut BTreeSet<&'static str>) {
    for name in allowed {
        if found.insert(name)
            && let Some((_, below)) = LAYERS.iter().find(|(package, _)| package == name)
        {
            reach(below, found);
        }
    }
}

fn violations(dependencies: &[Dependency]) -> Outcome {
    let mut found = Vec::new();
    for Dependency { package, needs, for_tests } in dependencies {
        let how = if *for_tests { "depends in tests on" } else { "depends on" };
        if (needs == "wgpu" || needs.starts_with("wgpu-")) && package != "pulid-engine" {
            found.push(format!("{package} {how} {needs}; only pulid-engine may"));
        }
        if needs != "pulid" && !needs.starts_with("pulid-") {
            continue;
        }
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| name == package) else {
            found.push(format!(
                "{package} {how} {needs}, but `LAYERS` of xtask/src/check.rs does not say where it stands"
            ));
            continue;
        };
        let mut reachable = BTreeSet::new();
        reach(allowed, &mut reachable);
        if let (true, Some((_, more))) = (*for_tests, TESTS_ALONE.iter().find(|(name, _)| name == package)) {
            reach(more, &mut reachable);
        }
        if !reachable.contains(needs.as_str()) {
            found.push(format!("{package} {how} {needs}, which does not lie below it (docs/ARCHITECTURE.md)"));
        }
    }
    if found.is_empty() { Ok(()) } else { Err(found.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn need(package: &str, needs: &str, for_tests: bool) -> Outcome {
        violations(&[Dependency { package: package.into(), needs: needs.into(), for_tests }])
    }

    #[test]
    fn a_second_user_of_wgpu_is_refused() {
        for for_tests in [false, true] {
            assert!(need("pulid-models", "wgpu", for_tests).is_err());
            assert!(need("pulid-cli", "wgpu-types", for_tests).is_err());
            assert!(need("xtask", "wgpu", for_tests).is_err());
            assert!(need("pulid-engine", "wgpu", for_tests).is_ok());
        }
    }

    #[test]
    fn layers_do_not_turn_around() {
        let upwards = [
            ("pulid-tensor", "pulid-ops"),
            ("pulid-ops", "pulid-graph"),
            ("pulid-ops", "pulid-checkpoint"),
            ("pulid-graph", "pulid-engine"),
            ("pulid-engine", "pulid-models"),
            ("pulid-engine", "pulid-checkpoint"),
            ("pulid-engine", "pulid-conformance"),
            ("pulid-models", "pulid-engine"),
            ("pulid-conformance", "pulid-models"),
            ("pulid-conformance", "pulid"),
            ("pulid", "pulid-conformance"),
            ("pulid", "pulid-hub"),
            ("pulid", "pulid-cli"),
            ("pulid-wasm", "pulid-hub"),
            ("pulid-site", "pulid-models"),
        ];
        for (package, needs) in upwards {
            let message = need(package, needs, false).unwrap_err();
            assert!(message.contains(package) && message.contains(needs), "{message}");
        }
        // From the crate just below to the lowest.
        for (package, needs) in [
            ("pulid-graph", "pulid-ops"),
            ("pulid-models", "pulid-tensor"),
            ("pulid", "pulid-ops"),
            ("pulid-cli", "pulid-graph"),
        ] {
            need(package, needs, false).unwrap();
        }
    }

    #[test]
    fn tests_keep_to_the_layers_too() {
        let message = need("pulid-ops", "pulid-graph", true).unwrap_err();
        assert!(message.contains("in tests"), "{message}");
        assert!(need("pulid-site", "pulid", false).is_err());
        need("pulid-site", "pulid", true).unwrap();
        assert!(need("pulid-site", "pulid-hub", true).is_err());
    }

    #[test]
    fn a_crate_without_a_place_is_named() {
        let message = need("pulid-other", "pulid-ops", false).unwrap_err();
        assert!(message.contains("pulid-other") && message.contains("LAYERS"), "{message}");
    }

    #[test]
    fn every_section_of_a_manifest_counts() {
        let metadata = serde_json::json!({"packages": [
            {"name": "pulid-ops", "dependencies": [
                {"name": "pulid-tensor", "kind": null},
                {"name": "wgpu", "kind": "dev"},
                {"name": "pulid-graph", "kind": "build"},
            ]},
        ]});
        let message = violations(&needs_of_packages(&metadata)).unwrap_err();
        assert!(message.contains("in tests on wgpu") && message.contains("depends on pulid-graph"), "{message}");
        assert!(!message.contains("pulid-tensor"), "{message}");
    }

    #[test]
    fn the_mini_models_are_small() {
        mini_models().unwrap();
    }

    #[test]
    fn the_workspace_keeps_to_its_layers() {
        layering().unwrap();
    }

    /// The table of docs/ARCHITECTURE.md says the same.
    #[test]
    fn the_architecture_shows_these_layers() {
        let text = std::fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap();
        let mut shown = BTreeMap::new();
        for line in text.lines().filter(|line| line.starts_with('|')) {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let Some(folder) = cells[0].strip_prefix("`crates/").and_then(|rest| rest.split('`').next()) else {
                continue;
            };
            let needs = cells[2].split(", ").filter(|n| !n.is_empty() && *n != "nothing of ours");
            shown.insert(folder.to_owned(), needs.map(str::to_owned).collect::<BTreeSet<_>>());
        }
        let short = |name: &str| name.strip_prefix("pulid-").unwrap_or(name).to_owned();
        let layers = LAYERS.iter().filter(|(name, _)| *name != "xtask");
        let wanted: BTreeMap<_, BTreeSet<_>> =
            layers.map(|(name, needs)| (short(name), needs.iter().map(|n| short(n)).collect())).collect();
        assert_eq!(shown, wanted);
    }
}
