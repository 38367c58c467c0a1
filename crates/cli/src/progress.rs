//! Progress on a terminal and Ctrl-C.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pulid::runtime::Reporter;
use pulid_engine::Observer;
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

static CANCELLED: AtomicBool = AtomicBool::new(false);

/// Shows stages and denoising steps with the time left; Ctrl-C cancels at the next submission.
pub struct Terminal {
    bar: RefCell<ProgressBar>,
    stage: RefCell<(String, Instant)>,
    seconds: RefCell<Vec<(String, f64)>>,
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
        Terminal { bar: RefCell::new(bar), stage, seconds: RefCell::default(), quiet }
    }

    /// Ends the last stage and gives the seconds of each.
    pub fn finish(&self) -> Vec<(String, f64)> {
        self.close();
        self.bar.borrow().finish_and_clear();
        self.seconds.borrow().clone()
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
}

impl Reporter for Terminal {
    fn stage(&self, name: &str) {
        self.close();
        *self.stage.borrow_mut() = (name.to_owned(), Instant::now());
        self.bar.borrow().finish_and_clear();
        let target = if self.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_message(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        *self.bar.borrow_mut() = bar;
    }

    fn step(&self, step: usize, steps: usize) {
        let bar = self.bar.borrow();
        if bar.length() != Some(steps as u64) {
            let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} ({per_sec}, {eta} left)");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_length(steps as u64);
        }
        bar.set_position(step as u64);
    }
}
