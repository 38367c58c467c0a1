//! Installs what a fresh Debian or Ubuntu lacks. Every command is shown before it runs.

use crate::{Outcome, output, run};
use std::io::{IsTerminal, Write};
use std::path::Path;

/// How the system's packages come onto this machine. As root they are installed; anyone else is shown the commands that
/// sudo would run and asked first, unless `--yes` or the environment variable `CI` has answered.
pub struct Setup {
    yes: bool,
}

/// What happens to commands that need root.
#[derive(Debug, PartialEq)]
enum Permission {
    Given,
    Ask,
    Refused,
}

impl Permission {
    fn of(is_root: bool, yes: bool, has_terminal: bool) -> Permission {
        match (is_root || yes, has_terminal) {
            (true, _) => Permission::Given,
            (false, true) => Permission::Ask,
            (false, false) => Permission::Refused,
        }
    }
}

impl Setup {
    /// `yes`: what the flag `--yes` says.
    pub fn new(yes: bool) -> Setup {
        Setup { yes: yes || std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false") }
    }

    /// A Vulkan driver: any that is there will do, else Mesa's software driver from the system's own package archive.
    pub fn vulkan_driver(&self) -> Outcome {
        let is_driver = |folder: &&str| {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|e| e.path()).any(|p| p.extension().is_some_and(|e| e == "json"))
        };
        let has_driver = ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d"].iter().any(is_driver)
            || std::env::var_os("VK_DRIVER_FILES").is_some();
        let has_loader = output("sh", &["-c", "ldconfig -p | grep libvulkan.so.1"]).is_some();
        if !cfg!(target_os = "linux") || (has_driver && has_loader) {
            return Ok(());
        }
        if !has_apt() {
            return Err("no Vulkan driver found; install one for your GPU, or Mesa's lavapipe".into());
        }
        println!("No Vulkan driver found: mesa-vulkan-drivers has one that runs shaders on the CPU.");
        let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let backports = if release.contains("bookworm") { Backports::find() } else { Backports::None };
        let mut commands = Vec::new();
        if let Backports::Add(write) = &backports {
            println!("Debian's bookworm-backports have a newer Mesa (with f16).");
            commands.push(words(&["sh", "-c", write]));
        }
        commands.push(words(&["apt-get", "update"]));
        let mut install = words(&["apt-get", "install", "--yes", "--no-install-recommends"]);
        if backports != Backports::None {
            install.extend(words(&["--target-release", "bookworm-backports"]));
        }
        install.extend(words(&["mesa-vulkan-drivers", "libvulkan1"]));
        commands.push(install);
        self.privileged(&commands)
    }

    /// `spirv-val` and `glslangValidator`, which check the SPIR-V and GLSL of every shader; without one its check is left out.
    pub fn shader_validators(&self) {
        for (program, package, language) in
            [("spirv-val", "spirv-tools", "SPIR-V"), ("glslangValidator", "glslang-tools", "GLSL")]
        {
            if let Err(e) = self.tool(program, &[package], &format!("{package}, which checks the shaders' {language}"))
            {
                println!("the shaders' {language} will not be checked: {e}");
            }
        }
    }

    /// `wasm-opt`; without it the page's wasm is a fifth larger.
    pub fn wasm_optimiser(&self) {
        if let Err(e) = self.tool("wasm-opt", &["binaryen"], "binaryen, which makes the page's wasm smaller") {
            println!("the page's wasm will be larger: {e}");
        }
    }

    /// Chromium and its driver, for the page's tests.
    pub fn browser(&self) -> Outcome {
        self.tool("chromedriver", &["chromium", "chromium-driver"], "Chromium and its driver, for the page's tests")
    }

    /// The linker of Windows builds, and what fetches and unpacks Microsoft's compilers.
    pub fn windows_linker(&self) -> Outcome {
        self.tool(
            "x86_64-w64-mingw32-gcc",
            &["gcc-mingw-w64-x86-64-posix"],
            "MinGW-w64, which links Windows programs",
        )?;
        self.tool("curl", &["curl", "ca-certificates"], "curl, which fetches Microsoft's shader compilers")?;
        self.tool("unzip", &["unzip"], "unzip, which unpacks Microsoft's shader compilers")
    }

    /// A program from the system's packages, installed where it is missing.
    fn tool(&self, program: &str, packages: &[&str], what: &str) -> Outcome {
        if output("sh", &["-c", &format!("command -v {program}")]).is_some() {
            return Ok(());
        }
        if !has_apt() {
            return Err(format!("there is no {program}; install {what}"));
        }
        println!("No {program} found; it is in {what}.");
        let mut install = words(&["apt-get", "install", "--yes", "--no-install-recommends"]);
        install.extend(words(packages));
        self.privileged(&[words(&["apt-get", "update"]), install])
    }

    /// Runs commands one after another as root, or through sudo with the person's consent.
    fn privileged(&self, commands: &[Vec<String>]) -> Outcome {
        let is_root = output("id", &["-u"]).is_some_and(|id| id.trim() == "0");
        let commands: Vec<Vec<String>> = commands
            .iter()
            .map(|command| if is_root { command.clone() } else { [words(&["sudo"]), command.clone()].concat() })
            .collect();
        let listed: String = commands.iter().map(|command| format!("\n  {}", shell(command))).collect();
        match Permission::of(is_root, self.yes, std::io::stdin().is_terminal()) {
            Permission::Given => println!("Running:{listed}"),
            Permission::Ask => {
                print!("This is going to run:{listed}\nGo on? [y/N] ");
                std::io::stdout().flush().map_err(|e| e.to_string())?;
                let mut answer = String::new();
                std::io::stdin().read_line(&mut answer).map_err(|e| e.to_string())?;
                if !["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
                    return Err(format!("not installed, as you wish; by hand it is:{listed}"));
                }
            }
            Permission::Refused => {
                return Err(format!(
                    "this needs root, and there is no terminal to ask on; run the following yourself, or give --yes:{listed}"
                ));
            }
        }
        for command in &commands {
            let arguments: Vec<&str> = command[1..].iter().map(String::as_str).collect();
            let result = run(&command[0], &arguments);
            // Without a network the lists that are there may still do.
            if command.ends_with(&words(&["apt-get", "update"])) {
                if let Err(e) = result {
                    println!("{e}; going on with the package lists that are there");
                }
            } else {
                result?;
            }
        }
        Ok(())
    }
}

fn has_apt() -> bool {
    Path::new("/usr/bin/apt-get").exists()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// A command as one would type it.
fn shell(command: &[String]) -> String {
    let plain = |word: &str| word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:=".contains(c));
    let typed = |word: &String| if plain(word) { word.clone() } else { format!("'{}'", word.replace('\'', r"'\''")) };
    command.iter().map(typed).collect::<Vec<_>>().join(" ")
}

/// Debian 12's own Mesa lacks f16; its backports have it.
#[derive(Debug, PartialEq)]
enum Backports {
    /// Cannot be had: the older driver then runs everything in f32.
    None,
    /// Listed on this machine.
    Listed,
    /// To be listed by this shell command.
    Add(String),
}

impl Backports {
    /// From the archive the machine already uses.
    fn find() -> Backports {
        let sources = "/etc/apt/sources.list /etc/apt/sources.list.d";
        let listed = output("sh", &["-c", &format!("grep -rhs bookworm-backports {sources}")]);
        if listed.is_some_and(|text| !text.trim().is_empty()) {
            return Backports::Listed;
        }
        let find = format!("grep -rhsoE '(http|https)://[^ ]*/debian/?( |$)' {sources} | head -n 1");
        let Some(archive) = output("sh", &["-c", &find]).map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()) else {
            return Backports::None;
        };
        let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let line = format!("deb [signed-by={keyring}] {archive} bookworm-backports main");
        Backports::Add(format!("echo \"{line}\" > /etc/apt/sources.list.d/bookworm-backports.list"))
    }
}

/// The target that browser builds need.
pub fn wasm_target() -> Outcome {
    target("wasm32-unknown-unknown", "browser builds")
}

/// A target of Rust's, installed where it is missing.
pub fn target(target: &str, what_for: &str) -> Outcome {
    let installed = output("rustc", &["--print", "sysroot"])
        .is_some_and(|sysroot| Path::new(sysroot.trim()).join("lib/rustlib").join(target).is_dir());
    if installed {
        return Ok(());
    }
    println!("Installing the Rust target {target}, which {what_for} need.");
    run("rustup", &["target", "add", target])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_but_root_installs_unasked() {
        for terminal in [false, true] {
            assert_eq!(Permission::of(true, false, terminal), Permission::Given);
            assert_eq!(Permission::of(false, true, terminal), Permission::Given);
        }
        assert_eq!(Permission::of(false, false, true), Permission::Ask);
        assert_eq!(Permission::of(false, false, false), Permission::Refused);
    }

    #[test]
    fn commands_are_shown_as_one_would_type_them() {
        assert_eq!(shell(&words(&["sudo", "apt-get", "install", "--yes"])), "sudo apt-get install --yes");
        assert_eq!(shell(&words(&["sh", "-c", "echo it's > a"])), r"sh -c 'echo it'\''s > a'");
    }
}
