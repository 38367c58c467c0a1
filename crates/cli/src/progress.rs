//! Progress on a terminal and Ctrl-C.

use crate::commands::note_with_flags;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pulid::runtime::Reporter;
use pulid_engine::Observer;
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

static CANCELLED: AtomicBool = AtomicBool::new(false);

/// Shows stages and denoising steps with the time left; Ctrl-C cancels at the next submission. Where standard error is no
/// terminal there is no bar: stages and notes are lines then, so that a log tells what was done.
pub struct Terminal {
    bar: RefCell<ProgressBar>,
    stage: RefCell<(String, Instant)>,
    seconds: RefCell<Vec<(String, f64)>>,
    /// Whether this stage counts denoising steps; what is counted within a step is not shown then.
    steps: Cell<bool>,
    notes: RefCell<Vec<String>>,
    quiet: bool,
}

impl Terminal {
    /// `quiet` hides everything (for `--json`).
    pub fn new(quiet: bool) -> Self {
        on_ctrl_c();
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let stage = RefCell::new((String::new(), Instant::now()));
        Terminal {
            bar: RefCell::new(bar),
            stage,
            seconds: RefCell::default(),
            steps: Cell::new(false),
            notes: RefCell::default(),
            quiet,
        }
    }

    /// Ends the last stage and gives the seconds of each.
    pub fn finish(&self) -> Vec<(String, f64)> {
        self.close();
        self.bar.borrow().finish_and_clear();
        self.seconds.borrow().clone()
    }

    /// Everything that was noted so far, for reports.
    pub fn notes(&self) -> Vec<String> {
        self.notes.borrow().clone()
    }

    /// Moves the bar; a stage's first count, and the change from weights to work, gives it its form.
    fn show(&self, template: &str, position: u64, length: u64) {
        let bar = self.bar.borrow();
        // First, so that what the last count was of is never shown beside the new length.
        bar.set_position(position);
        if bar.length() != Some(length) {
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_length(length);
            bar.reset_eta();
        }
    }

    /// A line above the bar, or a plain one where there is no bar.
    fn print(&self, text: &str) {
        if !self.quiet {
            print_above(&self.bar.borrow(), text);
        }
    }

    fn close(&self) {
        let mut stage = self.stage.borrow_mut();
        let (name, start) = &*stage;
        if !name.is_empty() {
            let seconds = start.elapsed().as_secs_f64();
            self.print(&format!("{name}: {seconds:.1} s"));
            self.seconds.borrow_mut().push((name.clone(), seconds));
        }
        *stage = (String::new(), Instant::now());
    }
}

impl Observer for Terminal {
    fn cancelled(&self) -> bool {
        cancelled()
    }

    fn progress(&self, done: u64, total: u64) {
        if self.steps.get() || total == 0 {
            return;
        }
        self.show("{msg} {wide_bar} {percent}% ({elapsed}, {eta} left)", done, total);
    }
}

impl Reporter for Terminal {
    fn stage(&self, name: &str) {
        self.close();
        self.steps.set(false);
        *self.stage.borrow_mut() = (name.to_owned(), Instant::now());
        self.bar.borrow().finish_and_clear();
        let target = if self.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(None, target);
        if bar.is_hidden() && !self.quiet {
            note!("{name} ...");
        }
        bar.set_message(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        *self.bar.borrow_mut() = bar;
    }

    fn note(&self, text: &str) {
        let text = note_with_flags(text);
        self.print(&text);
        self.notes.borrow_mut().push(text);
    }

    fn step(&self, step: usize, steps: usize) {
        self.steps.set(true);
        self.show("{msg} {wide_bar} {pos}/{len} ({per_sec}, {eta} left)", step as u64, steps as u64);
    }
}

/// Whether Ctrl-C was pressed.
pub fn cancelled() -> bool {
    CANCELLED.load(Ordering::SeqCst)
}

/// Asks the work to stop.
pub fn cancel() {
    CANCELLED.store(true, Ordering::SeqCst);
}

fn on_ctrl_c() {
    // A second Ctrl-C ends the program at once; failing to install the handler leaves the system's own behaviour.
    let _ = ctrlc::set_handler(|| {
        if CANCELLED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    });
}

/// A hidden bar swallows what is printed above it.
fn print_above(bar: &ProgressBar, text: &str) {
    if bar.is_hidden() { note!("{text}") } else { bar.println(text) }
}

/// Shows a file arrive, with rate and time left; Ctrl-C stops it.
pub struct Arrival {
    bar: RefCell<ProgressBar>,
    name: RefCell<String>,
}

impl Arrival {
    /// Nothing is shown yet.
    pub fn new() -> Self {
        on_ctrl_c();
        Arrival { bar: RefCell::new(ProgressBar::hidden()), name: RefCell::default() }
    }

    /// A file begins or goes on.
    pub fn start(&self, name: &str, done: u64, size: Option<u64>) {
        if *self.name.borrow() != name {
            self.finish();
            *self.name.borrow_mut() = name.to_owned();
            let bar = ProgressBar::with_draw_target(size, ProgressDrawTarget::stderr());
            let template = "{msg} {wide_bar} {bytes}/{total_bytes} ({bytes_per_sec}, {eta} left)";
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(name.to_owned());
            *self.bar.borrow_mut() = bar;
        }
        let bar = self.bar.borrow();
        if let Some(size) = size {
            bar.set_length(size);
        }
        bar.set_position(done);
        // What was there before says nothing about the rate.
        bar.reset_eta();
    }

    /// So many bytes are there.
    pub fn set(&self, done: u64) {
        self.bar.borrow().set_position(done);
    }

    /// A line above the bar.
    pub fn print(&self, text: &str) {
        print_above(&self.bar.borrow(), text);
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.borrow().finish_and_clear();
        self.name.borrow_mut().clear();
    }
}
