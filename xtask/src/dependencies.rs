//! What the packages from elsewhere may be: their licences and sources (deny.toml), and the oldest Rust they build with.

use crate::{Outcome, output, run};
use serde_json::Value;

pub fn check() -> Outcome {
    minimum_rust()?;
    if output("cargo", &["deny", "--version"]).is_none() {
        println!(
            "no cargo-deny found: licences, duplicates and sources of dependencies are not checked \
             (cargo install cargo-deny --locked)"
        );
        return Ok(());
    }
    // Advisories appear without any change here, so they are looked up by CI, not by everyone's test.
    run("cargo", &["deny", "check", "bans", "licenses", "sources"])
}

/// No dependency asks for a newer Rust than the workspace's `rust-version` promises. That our own code keeps to it is what
/// clippy's `incompatible_msrv` and CI's build with that release see to.
fn minimum_rust() -> Outcome {
    println!("checking that no dependency needs a newer Rust than Cargo.toml promises");
    let locked = ["metadata", "--format-version", "1", "--locked"];
    // Without a network other systems' packages may be missing; this one's were just built.
    let here = output("rustc", &["-vV"]).unwrap_or_default();
    let here = here.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
    let text = output("cargo", &[&locked[..], &["--offline"]].concat())
        .or_else(|| output("cargo", &locked))
        .or_else(|| output("cargo", &[&locked[..], &["--offline", "--filter-platform", here]].concat()))
        .ok_or("cargo metadata --locked failed: is Cargo.lock up to date?")?;
    newer_than_promised(&serde_json::from_str(&text).map_err(|e| format!("cargo metadata: {e}"))?)
}

fn newer_than_promised(metadata: &Value) -> Outcome {
    let packages = || metadata["packages"].as_array().into_iter().flatten();
    let release = |package: &Value| {
        let text = package["rust_version"].as_str()?;
        Some(text.split('.').map(|part| part.parse().unwrap_or(0)).chain([0, 0]).take(3).collect::<Vec<u32>>())
    };
    // Packages without a source are this workspace's.
    let (ours, others): (Vec<&Value>, Vec<&Value>) = packages().partition(|p| p["source"].is_null());
    let promised = ours.iter().filter_map(|p| release(p)).min().ok_or("no package here declares a rust-version")?;
    let newer: Vec<String> = others
        .iter()
        .filter(|p| release(p).is_some_and(|needed| needed > promised))
        .map(|p| format!("{} {} needs Rust {}", text(&p["name"]), text(&p["version"]), text(&p["rust_version"])))
        .collect();
    match newer.is_empty() {
        true => Ok(()),
        false => Err(format!("{}; raise rust-version in Cargo.toml, or take an older release", newer.join("; "))),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn with(needed: &str) -> Outcome {
        newer_than_promised(&json!({"packages": [
            {"name": "pulid", "version": "0.1.0", "source": null, "rust_version": "1.90"},
            {"name": "silent", "version": "1.0.0", "source": "registry", "rust_version": null},
            {"name": "other", "version": "2.3.4", "source": "registry", "rust_version": needed},
        ]}))
    }

    #[test]
    fn the_workspace_keeps_its_promise() {
        minimum_rust().unwrap();
    }

    #[test]
    fn a_dependency_for_a_newer_rust_is_named() {
        for fine in ["1.90", "1.90.0", "1.9", "1.89.1"] {
            with(fine).unwrap();
        }
        for newer in ["1.91", "1.90.1", "2.0"] {
            let message = with(newer).unwrap_err();
            assert!(message.contains("other 2.3.4") && message.contains(newer), "{message}");
        }
    }
}
