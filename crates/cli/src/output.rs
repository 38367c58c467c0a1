//! Lines for people and programs. A reader that has gone away (`pulid bench | head`) ends the work as Ctrl-C does.

use std::fmt;
use std::io::Write;

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
    if writeln!(std::io::stdout().lock(), "{text}").is_err() {
        crate::progress::cancel();
    }
}

/// [`note!`]'s function. What is said beside the work may go unread.
pub fn err(text: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
