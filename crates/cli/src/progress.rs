//! Progress on a terminal and Ctrl-C.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pulid::runtime::Reporter;
use pulid_engine::Observer;
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

static CANCELLED: AtomicBool = AtomicBool::new(false);

/// Shows stages and denoising steps with the time left; Ctrl-C cancels at the next submission.
pub struct Terminal {
    bar: RefCell<ProgressBar>,
    stage: RefCell<(String, Instant)>,
    seconds: RefCell<Vec<(String, f64)>>,
    /// Whether this stage counts denoising steps; what is counted within a step is not shown then.
    steps: Cell<bool>,
    quiet: bool,
}

impl Terminal {
    /// `quiet` hides everything (for `--json`).
    pub fn new(quiet: bool) -> Self {
        // A second Ctrl-C ends the program at once; failing to install the handler leaves the system's own behaviour.
        let _ = ctrlc::set_handler(|| {
            if CANCELLED.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        });
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let stage = RefCell::new((String::new(), Instant::now()));
        Terminal { bar: RefCell::new(bar), stage, seconds: RefCell::default(), steps: Cell::new(false), quiet }
    }

    /// Ends the last stage and gives the seconds of each.
    pub fn finish(&self) -> Vec<(String, f64)> {
        self.close();
        self.bar.borrow().finish_and_clear();
        self.seconds.borrow().clone()
    }

    /// Moves the bar; a stage's first count, and the change from weights to work, gives it its form.
    fn show(&self, template: &str, position: u64, length: u64) {
        let bar = self.bar.borrow();
        if bar.length() != Some(length) {
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_length(length);
            bar.reset_eta();
        }
        bar.set_position(position);
    }

    fn close(&self) {
        let mut stage = self.stage.borrow_mut();
        let (name, start) = &*stage;
        if !name.is_empty() {
            let seconds = start.elapsed().as_secs_f64();
            self.bar.borrow().println(format!("{name}: {seconds:.1} s"));
            self.seconds.borrow_mut().push((name.clone(), seconds));
        }
        *stage = (String::new(), Instant::now());
    }
}

impl Observer for Terminal {
    fn cancelled(&self) -> bool {
        CANCELLED.load(Ordering::SeqCst)
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
        bar.set_message(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        *self.bar.borrow_mut() = bar;
    }

    fn note(&self, text: &str) {
        self.bar.borrow().println(text);
    }

    fn step(&self, step: usize, steps: usize) {
        self.steps.set(true);
        self.show("{msg} {wide_bar} {pos}/{len} ({per_sec}, {eta} left)", step as u64, steps as u64);
    }
}
