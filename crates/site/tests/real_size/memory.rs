//! What a browser's processes hold in memory, from Linux's `/proc`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The most that processes of a kind held at once, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peak {
    /// Memory of the process's own.
    pub anonymous: u64,
    /// Memory that it shares with others, such as what travels to the GPU's process.
    pub shared: u64,
    /// Both at once; less than the sum where they peaked at different times.
    pub both: u64,
}

/// Watches a process's descendants until it is told to stop.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeMap<String, Peak>>,
}

impl Watch {
    /// Begins to look, twenty times a second.
    pub fn start(ancestor: u32) -> Watch {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut peaks = BTreeMap::new();
            while !asked.load(Ordering::Relaxed) {
                look(ancestor, &mut peaks);
                std::thread::sleep(Duration::from_millis(50));
            }
            peaks
        });
        Watch { stop, thread }
    }

    /// Peaks by the kind of process (Chromium's `--type`: `renderer`, `gpu-process`), of each kind the largest process.
    pub fn finish(self) -> BTreeMap<String, Peak> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

fn look(ancestor: u32, peaks: &mut BTreeMap<String, Peak>) {
    let mut parents = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // Processes end while one looks.
        let Ok(status) = std::fs::read_to_string(format!("/proc/{id}/status")) else { continue };
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        parents.insert(id, (field("PPid:") as u32, field("RssAnon:") * 1024, field("RssShmem:") * 1024));
    }
    for (&id, &(parent, anonymous, shared)) in &parents {
        let mut above = parent;
        while above != ancestor && above > 1 {
            above = parents.get(&above).map_or(0, |process| process.0);
        }
        let command = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let kind = command.split("--type=").nth(1).and_then(|rest| rest.split_whitespace().next());
        if above == ancestor
            && let Some(kind) = kind
        {
            let peak: &mut Peak = peaks.entry(kind.to_owned()).or_default();
            peak.anonymous = peak.anonymous.max(anonymous);
            peak.shared = peak.shared.max(shared);
            peak.both = peak.both.max(anonymous + shared);
        }
    }
}
