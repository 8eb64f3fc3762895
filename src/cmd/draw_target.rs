//! Where progress bars are drawn: in the queue of standard error, so that a stopped terminal delays no command and
//! drawings do not mix with log lines.

use std::fmt::Write;
use std::io;

use indicatif::{ProgressDrawTarget, TermLike};
use parking_lot::Mutex;

use crate::base::stderr::Stderr;

/// Maximum drawings per second; the default of indicatif for terminals.
const DRAWINGS_PER_SECOND: u8 = 20;

/// A target that draws on standard error if that is a terminal which understands control sequences.
pub(crate) fn draw_target(stderr: &Stderr) -> ProgressDrawTarget {
    if !stderr.can_draw() {
        return ProgressDrawTarget::hidden();
    }
    let terminal = QueuedTerminal { stderr: stderr.clone(), drawing: Mutex::default() };
    ProgressDrawTarget::term_like_with_hz(Box::new(terminal), DRAWINGS_PER_SECOND)
}

/// Collects a drawing and adds it to the queue when it is complete. No call fails: indicatif panics if clearing the
/// bars does.
#[derive(Debug)]
struct QueuedTerminal {
    stderr: Stderr,
    drawing: Mutex<String>,
}

impl QueuedTerminal {
    /// Moves the cursor by `count` in the direction of an ANSI control sequence.
    fn move_cursor(&self, count: usize, direction: char) -> io::Result<()> {
        if count > 0 {
            // Writing to a String cannot fail.
            let _ = write!(self.drawing.lock(), "\x1b[{count}{direction}");
        }
        Ok(())
    }
}

impl TermLike for QueuedTerminal {
    fn width(&self) -> u16 {
        self.stderr.terminal_size().0
    }

    fn height(&self) -> u16 {
        self.stderr.terminal_size().1
    }

    fn move_cursor_up(&self, count: usize) -> io::Result<()> {
        self.move_cursor(count, 'A')
    }

    fn move_cursor_down(&self, count: usize) -> io::Result<()> {
        self.move_cursor(count, 'B')
    }

    fn move_cursor_right(&self, count: usize) -> io::Result<()> {
        self.move_cursor(count, 'C')
    }

    fn move_cursor_left(&self, count: usize) -> io::Result<()> {
        self.move_cursor(count, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.drawing.lock().extend([text, "\n"]);
        Ok(())
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.drawing.lock().push_str(text);
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        self.write_str("\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        self.stderr.draw(std::mem::take(&mut *self.drawing.lock()));
        Ok(())
    }
}
