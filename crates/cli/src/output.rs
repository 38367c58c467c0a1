//! Lines for people and programs. A reader that has gone away (`pulid bench | head`) ends the work as Ctrl-C does; an output that
//! takes no more, as on a full disk, is an error in the end.

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether standard output was closed before Rust's runtime opened `/dev/null` in its place.
static CLOSED: AtomicBool = AtomicBool::new(false);

#[cfg(unix)]
ctor::declarative::ctor! {
    // Nothing of the standard library's runtime is there yet: a system call and a store.
    #[ctor(unsafe)]
    fn look_at_stdout() {
        let closed = rustix::io::fcntl_getfd(rustix::stdio::stdout()) == Err(rustix::io::Errno::BADF);
        CLOSED.store(closed, Ordering::Relaxed);
    }
}

/// Whether standard output was open when the program started, be it on `/dev/null`.
pub fn was_open() -> bool {
    !CLOSED.load(Ordering::Relaxed)
}

/// Why standard output did not take what was said.
static REFUSED: OnceLock<io::Error> = OnceLock::new();

/// A line on standard output.
macro_rules! say {
    ($($text:tt)*) => { $crate::output::out(format_args!($($text)*)) };
}

/// A line on standard error.
macro_rules! note {
    ($($text:tt)*) => { $crate::output::err(format_args!($($text)*)) };
}

/// [`say!`]'s function. That nobody reads any more is no failure of ours, but a reason to stop.
pub fn out(text: fmt::Arguments<'_>) {
    let mut stdout = io::stdout().lock();
    if let Err(error) = writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        refused(error);
    }
}

/// Notes that standard output did not take something.
pub fn refused(error: io::Error) {
    if error.kind() == ErrorKind::BrokenPipe {
        crate::progress::cancel();
    } else {
        // The first one tells why.
        let _ = REFUSED.set(error);
    }
}

/// What standard output refused so far; that nobody reads any more is no refusal.
pub fn refusal() -> Option<&'static io::Error> {
    REFUSED.get()
}

/// [`note!`]'s function. What is said beside the work may go unread.
pub fn err(text: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
