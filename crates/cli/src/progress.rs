//! Progress on a terminal, and signals that end the work.

use crate::commands::note_with_flags;
use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use pulid::runtime::Reporter;
use pulid_engine::Observer;
use std::cell::{Cell, RefCell};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

static CANCELLED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Columns of a console that stay free: Windows' consoles go on in the next line once the last column is written, and terminals show
/// Ctrl-C as two characters where the cursor stands. A redraw would then find its line moved, and the bars pile up.
const FREE_COLUMNS: u16 = 3;

/// The filled part of a bar, its head and the rest: on Windows characters that every code page and font has, one column wide.
const BAR: &str = if cfg!(windows) { "=> " } else { "█▉▊▋▌▍▎▏  " };

/// What turns while nothing is counted yet, and the last of them when it is over.
const SPINNER: &str = if cfg!(windows) { r"-\|/ " } else { "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ " };

/// A terminal that is a little narrower than it is. Bars alone may be drawn on it: indicatif ends a line of text by filling it up
/// with spaces, as wide as it takes the terminal to be.
#[derive(Debug)]
struct Narrower<T>(T);

impl<T: TermLike> TermLike for Narrower<T> {
    fn width(&self) -> u16 {
        self.0.width().saturating_sub(FREE_COLUMNS).max(1)
    }
    fn height(&self) -> u16 {
        self.0.height()
    }
    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_up(n)
    }
    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_down(n)
    }
    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_right(n)
    }
    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_left(n)
    }
    fn write_line(&self, text: &str) -> io::Result<()> {
        self.0.write_line(text)
    }
    fn write_str(&self, text: &str) -> io::Result<()> {
        self.0.write_str(text)
    }
    /// By spaces: some consoles (Wine's) promise to follow escape codes and then write them, which moves the rest of the line.
    fn clear_line(&self) -> io::Result<()> {
        self.0.write_str(&format!("\r{:width$}\r", "", width = usize::from(self.0.width().saturating_sub(1))))
    }
    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Where bars are drawn: on standard error, if it is a terminal and somebody wants to see them.
fn target(quiet: bool) -> ProgressDrawTarget {
    let terminal = Term::buffered_stderr();
    match !quiet && terminal.features().is_attended() {
        true => ProgressDrawTarget::term_like_with_hz(Box::new(Narrower(terminal)), 20),
        false => ProgressDrawTarget::hidden(),
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars(BAR).tick_chars(SPINNER)
}

/// Shows stages and denoising steps with the time left; Ctrl-C cancels at the next submission. Where standard error is no
/// terminal there is no bar: stages and notes are lines then, so that a log tells what was done.
pub struct Terminal {
    bar: RefCell<ProgressBar>,
    stage: RefCell<(String, Instant)>,
    seconds: RefCell<Vec<(String, f64)>>,
    /// Whether this stage counts denoising steps; what is counted within a step is not shown then.
    steps: Cell<bool>,
    notes: RefCell<Vec<String>>,
    /// When a line last said how far a long work is.
    line: Cell<Option<Instant>>,
    quiet: bool,
}

impl Terminal {
    /// `quiet` hides everything (for `--json`).
    pub fn new(quiet: bool) -> Self {
        on_signals();
        // Nothing of it is seen before the first count.
        let bar = ProgressBar::with_draw_target(Some(0), target(quiet)).with_style(style("{msg}"));
        let stage = RefCell::new((String::new(), Instant::now()));
        Terminal {
            bar: RefCell::new(bar),
            stage,
            seconds: RefCell::default(),
            steps: Cell::new(false),
            notes: RefCell::default(),
            line: Cell::new(None),
            quiet,
        }
    }

    /// Ends the last stage and gives the seconds of each.
    pub fn finish(&self) -> Vec<(String, f64)> {
        self.bar.borrow().finish_and_clear();
        self.close();
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
            bar.set_style(style(template));
            bar.set_length(length);
            bar.reset_eta();
        }
    }

    /// Moves the bar to a step of a long work and shows how it goes. Where there is no bar a line says so, now and then.
    pub fn counted(&self, message: &str, step: u64, steps: u64) {
        const BETWEEN_LINES: Duration = Duration::from_secs(30);
        self.steps.set(true);
        if self.bar.borrow().is_hidden() {
            let due = self.line.get().is_none_or(|last| last.elapsed() > BETWEEN_LINES) || step == steps;
            if due {
                self.line.set(Some(Instant::now()));
                self.print(&format!("step {step}/{steps}: {message}"));
            }
            return;
        }
        self.show("{msg} {wide_bar} {pos}/{len}", step, steps);
        self.bar.borrow().set_message(message.to_owned());
    }

    /// A line above the bar, or a plain one where there is no bar.
    fn print(&self, text: &str) {
        if !self.quiet {
            above(&self.bar.borrow(), || note!("{text}"));
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
        self.bar.borrow().finish_and_clear();
        self.close();
        self.steps.set(false);
        *self.stage.borrow_mut() = (name.to_owned(), Instant::now());
        let bar = ProgressBar::with_draw_target(None, target(self.quiet));
        if bar.is_hidden() && !self.quiet {
            note!("{name} ...");
        }
        bar.set_style(style("{spinner} {msg}"));
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

/// Whether Ctrl-C was pressed, the system asks for an end, or nobody reads any more.
pub fn cancelled() -> bool {
    CANCELLED.load(Ordering::SeqCst)
}

/// What a cancelled command has kept, for the last message.
static KEPT: std::sync::OnceLock<String> = std::sync::OnceLock::new();

/// Says what is kept where the work is cancelled.
pub fn keep_word(text: String) {
    let _ = KEPT.set(text);
}

/// What [`keep_word`] said.
pub fn kept_word() -> Option<&'static str> {
    KEPT.get().map(String::as_str)
}

/// Asks the work to stop.
pub fn cancel() {
    CANCELLED.store(true, Ordering::SeqCst);
}

/// The exit code of work that was cancelled: 128 and the signal's number, as shells have it.
pub fn cancelled_code() -> u8 {
    128 + signals::last().unwrap_or(2)
}

/// From now on the first signal cancels, and a second one ends the program at once. Failing to install the handlers leaves the
/// system's own behaviour.
fn on_signals() {
    signals::install();
}

/// Ctrl-C, `kill` and a closed terminal.
#[cfg(unix)]
mod signals {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::flag;
    use std::os::raw::c_int;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, LazyLock, Once};

    static LAST: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Arc::default);
    static INSTALLED: Once = Once::new();

    pub fn last() -> Option<u8> {
        u8::try_from(LAST.load(Ordering::SeqCst)).ok().filter(|&signal| signal > 0)
    }

    pub fn install() {
        INSTALLED.call_once(|| {
            for signal in [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| !ignored(*signal)) {
                // In this order: what the first one sets is what the second one meets.
                let _ = flag::register_conditional_shutdown(signal, 128 + signal, super::CANCELLED.clone());
                let _ = flag::register_usize(signal, LAST.clone(), signal.unsigned_abs() as usize);
                let _ = flag::register(signal, super::CANCELLED.clone());
            }
        });
    }

    /// Whether whoever started the program had this signal ignored, as `nohup` does; it stays so. Where the system does not tell, it
    /// counts as not ignored.
    fn ignored(signal: c_int) -> bool {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
        mask >> (signal - 1) & 1 == 1
    }
}

/// Ctrl-C, Ctrl-Break, and a console that is closed.
#[cfg(not(unix))]
mod signals {
    pub fn last() -> Option<u8> {
        None
    }

    pub fn install() {
        let _ = ctrlc::set_handler(|| {
            if super::cancelled() {
                std::process::exit(130);
            }
            super::cancel();
        });
    }
}

/// Says a line where the bar is, which moves below it; a hidden bar is in nobody's way. Not indicatif's `println`, see [`Narrower`].
fn above(bar: &ProgressBar, say: impl FnOnce()) {
    bar.suspend(say);
}

/// Shows a file arrive, with rate and time left; Ctrl-C stops it.
pub struct Arrival {
    bar: RefCell<ProgressBar>,
    name: RefCell<String>,
}

impl Arrival {
    /// Nothing is shown yet.
    pub fn new() -> Self {
        on_signals();
        Arrival { bar: RefCell::new(ProgressBar::hidden()), name: RefCell::default() }
    }

    /// A file begins or goes on.
    pub fn start(&self, name: &str, done: u64, size: Option<u64>) {
        if *self.name.borrow() != name {
            self.finish();
            *self.name.borrow_mut() = name.to_owned();
            let bar = ProgressBar::with_draw_target(size, target(false));
            let template = "{msg} {wide_bar} {bytes}/{total_bytes} ({bytes_per_sec}, {eta} left)";
            bar.set_style(style(template));
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
        above(&self.bar.borrow(), || note!("{text}"));
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.borrow().finish_and_clear();
        self.name.borrow_mut().clear();
    }
}

#[cfg(test)]
mod tests;
