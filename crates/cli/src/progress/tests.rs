use super::{Narrower, above, style};
use indicatif::{ProgressBar, ProgressDrawTarget, TermLike};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

const COLUMNS: usize = 40;

/// A console as Windows has it: once the last column is written, the cursor stands in the next line. Like Wine's it writes escape
/// codes where it should follow them.
#[derive(Clone, Debug, Default)]
struct Console(Arc<Mutex<Screen>>);

#[derive(Debug, Default)]
struct Screen {
    lines: Vec<[char; COLUMNS]>,
    row: usize,
    column: usize,
}

impl Screen {
    fn put(&mut self, character: char) {
        match character {
            '\r' => self.column = 0,
            '\n' => (self.row, self.column) = (self.row + 1, 0),
            _ => {
                while self.lines.len() <= self.row {
                    self.lines.push([' '; COLUMNS]);
                }
                self.lines[self.row][self.column] = character;
                self.column += 1;
                if self.column == COLUMNS {
                    (self.row, self.column) = (self.row + 1, 0);
                }
            }
        }
    }
}

impl Console {
    fn screen(&self) -> MutexGuard<'_, Screen> {
        self.0.lock().unwrap()
    }

    fn lines(&self) -> Vec<String> {
        let lines =
            self.screen().lines.iter().map(|line| line.iter().collect::<String>().trim_end().to_owned()).collect();
        let mut lines: Vec<String> = lines;
        while lines.last().is_some_and(String::is_empty) {
            lines.pop();
        }
        lines
    }
}

impl TermLike for Console {
    fn width(&self) -> u16 {
        COLUMNS as u16
    }
    fn height(&self) -> u16 {
        20
    }
    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        let mut screen = self.screen();
        screen.row = screen.row.saturating_sub(n);
        Ok(())
    }
    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.screen().row += n;
        Ok(())
    }
    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        let mut screen = self.screen();
        screen.column = (screen.column + n).min(COLUMNS - 1);
        Ok(())
    }
    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        let mut screen = self.screen();
        screen.column = screen.column.saturating_sub(n);
        Ok(())
    }
    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write_str(text)?;
        self.write_str("\n")
    }
    fn write_str(&self, text: &str) -> io::Result<()> {
        let mut screen = self.screen();
        text.chars().for_each(|character| screen.put(character));
        Ok(())
    }
    fn clear_line(&self) -> io::Result<()> {
        self.write_str("\r[2K")
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn bars_stay_in_their_line_and_what_is_said_above_them_is_whole() {
    let console = Console::default();
    let target = || ProgressDrawTarget::term_like(Box::new(Narrower(console.clone())));
    // One that is wider than the bars, one that wraps, and a short one.
    let said =
        ["a line that is wider than the bars are.", "a line that goes on where the console has no columns left", "x"];
    let mut expected: Vec<String> = Vec::new();
    for line in said {
        let bar = ProgressBar::with_draw_target(Some(4), target());
        bar.set_style(style("{msg} {wide_bar} {pos}/{len}"));
        bar.set_message("denoising");
        for position in 0..4 {
            bar.set_position(position);
            bar.force_draw();
        }
        // Ctrl-C, as terminals show it.
        console.write_str("^C").unwrap();
        above(&bar, || console.write_line(line).unwrap());
        expected.extend(
            line.as_bytes().chunks(COLUMNS).map(|part| String::from_utf8(part.to_vec()).unwrap().trim_end().to_owned()),
        );
        let lines = console.lines();
        let (bar_line, above) = lines.split_last().unwrap();
        assert_eq!(above, expected);
        assert!(bar_line.starts_with("denoising ") && bar_line.ends_with(" 3/4"), "{bar_line}");
        assert_eq!(bar_line.chars().count(), COLUMNS - 3, "three columns stay free: {bar_line}");
        bar.finish_and_clear();
        assert_eq!(console.lines(), expected, "nothing of the bar is left");
    }
}
