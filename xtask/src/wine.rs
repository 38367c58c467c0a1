//! Wine beside the system: Windows programs on lavapipe, in a root of their own that holds nothing else.

use crate::debian::{LIBRARIES, Packages};
use crate::{Outcome, root};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian trixie's Wine, whose Direct3D 12 runs on Vulkan, and what a bare root needs: a shell, a display that nobody sees, a driver.
const PACKAGES: [&str; 9] = [
    "wine64",
    "libwine",
    "libvulkan1",
    "mesa-vulkan-drivers",
    "xvfb",
    "x11-xkb-utils",
    "base-files",
    "dash",
    "coreutils",
];

/// Starts a program in the unpacked root, which sees the repository as `/repository`. A user namespace lets anyone do so.
const ENTER: &str = r#"
root=$0 repository=$1
shift
mount --rbind /dev "$root/dev" && mount --rbind /proc "$root/proc" && mount --rbind /sys "$root/sys" || exit 125
mount --rbind "$repository" "$root/repository" || exit 125
exec chroot "$root" sh -c "$@"
"#;

/// Runs a Windows program where it finds a display, and ends Wine's own processes after it.
const DISPLAY: &str = r#"
cd /repository || exit 125
rm -f /tmp/display
Xvfb -displayfd 3 -nolisten tcp 3> /tmp/display > /dev/null 2>&1 &
until test -s /tmp/display; do
    kill -0 $! || exit 125
    sleep 0.1
done
export DISPLAY=":$(cat /tmp/display)"
wine64 "$@"
code=$?
wineserver -k
kill $!
exit $code
"#;

/// The unpacked packages.
pub struct Wine {
    root: PathBuf,
}

impl Wine {
    /// Fetches and unpacks the packages the first time, and makes Wine's folder of Windows.
    ///
    /// Errors say why they cannot be had here, as [`Packages::fetched`] does.
    pub fn fetched() -> Outcome<Wine> {
        let packages = Packages {
            what: "Wine 10 (some 1.4 GB unpacked)".into(),
            folder: "wine-10".into(),
            release: None,
            wanted: PACKAGES.map(str::to_owned).to_vec(),
            pinned: vec![],
        };
        let finish = |folder: &Path| {
            let wine = Wine { root: folder.join("root") };
            for place in ["proc", "sys", "dev", "repository", "tmp"] {
                let path = wine.root.join(place);
                std::fs::create_dir_all(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            }
            wine.zlib()?;
            wine.check(wine.windows(&["wineboot", "--init"], &[]), "Wine")
        };
        packages.fetched(finish).map(|folder| Wine { root: folder.join("root") })
    }

    /// A program of this system, by its path in the repository, on the same driver as the Windows programs.
    pub fn native(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Command {
        self.enter("cd /repository && exec \"$0\" \"$@\"", arguments, variables)
    }

    /// A Windows program, by its path in the repository.
    pub fn windows(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Command {
        self.enter(DISPLAY, &[&["sh"], arguments].concat(), variables)
    }

    /// Runs a command to its end.
    pub fn check(&self, mut command: Command, what: &str) -> Outcome {
        match command.status() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) if status.code() == Some(125) => {
                Err(format!("{what} cannot be started in {}: see above", self.root.display()))
            }
            Ok(status) => Err(format!("{what} failed ({status})")),
            Err(e) => Err(format!("unshare cannot be started: {e}")),
        }
    }

    fn enter(&self, script: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--map-root-user", "sh", "-c", ENTER]).arg(&self.root).arg(root());
        command.arg(script).args(arguments);
        command.env_clear().envs(variables.iter().copied()).envs([
            ("PATH", "/usr/bin:/usr/sbin:/usr/lib/wine"),
            ("HOME", "/tmp"),
            ("XDG_RUNTIME_DIR", "/tmp"),
            ("WINEPREFIX", "/tmp/prefix"),
            ("WINEDEBUG", "-all"),
            ("VK_DRIVER_FILES", "/usr/share/vulkan/icd.d/lvp_icd.json"),
            // As for every other lavapipe here.
            ("LP_NATIVE_VECTOR_WIDTH", "256"),
        ]);
        command
    }

    /// What the package's own script does on installation: puts zlib where Wine finds it, marked as one of its own libraries.
    fn zlib(&self) -> Outcome {
        let from = self.root.join("usr/x86_64-w64-mingw32/lib/zlib1.dll");
        let mut library = std::fs::read(&from).map_err(|e| format!("{}: {e}", from.display()))?;
        let mark: Vec<u8> = b"Wine builtin DLL".iter().copied().chain([0; 16]).collect();
        let place = library.get_mut(64..64 + mark.len()).ok_or_else(|| format!("{} is no library", from.display()))?;
        place.copy_from_slice(&mark);
        let to = self.root.join(LIBRARIES).join("wine/x86_64-windows/zlib1.dll");
        std::fs::write(&to, library).map_err(|e| format!("{}: {e}", to.display()))
    }
}
