//! Standard error. Everything that the program writes there goes through one queue: log lines, messages, progress bars.
//!
//! A thread of its own writes the queue, so a disk that is full, a pipe that nobody reads or a stopped terminal delays
//! no other thread. What cannot be written is dropped; lines are counted. Nothing here may panic, and only that thread
//! may wait without a limit.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use parking_lot::{Condvar, Mutex, MutexGuard};
use prometheus::IntCounter;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use serde::Serialize;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// Maximum number of queued lines.
const MAX_LINES: usize = 16 * 1024;
/// Maximum size of all queued lines in bytes.
const MAX_BYTES: usize = 4 << 20;
/// Progress bars are not drawn while more bytes than this are queued, so that they cannot fill the queue.
const MAX_BYTES_BEFORE_DRAWING: usize = 64 * 1024;
/// Time for the last lines to be written when the program ends.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);
/// Bytes that a pipe takes at once when it is writable.
const PIPE_BUF: usize = 4096;
/// Pause after a write to a non-blocking pipe that found no room, in case `poll` reports room that a write does not
/// find.
const WRITE_AGAIN_PAUSE: Duration = Duration::from_millis(1);

/// The target of the lines that do not come from `tracing`.
const TARGET: &str = "model_catalog";

/// Log output format.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines of text.
    Text,
    /// One JSON object per line.
    Json,
}

/// A handle to the queue.
#[derive(Clone)]
pub(crate) struct Stderr(Arc<Shared>);

impl fmt::Debug for Stderr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stderr")
    }
}

struct Shared {
    format: LogFormat,
    queue: Mutex<Queue>,
    /// Notified of each chunk that was added.
    added: Condvar,
    /// Notified of each chunk that was written or dropped.
    finished: Condvar,
}

/// The unit of writing: a line, or a drawing of the progress bars.
struct Chunk {
    bytes: Vec<u8>,
    /// 0 for a drawing, which is not counted when it is dropped.
    lines: u64,
    /// Lines that were dropped between the previous line in the queue and this one.
    dropped_before: u64,
}

#[derive(Default)]
struct Queue {
    chunks: VecDeque<Chunk>,
    /// Size of all chunks, including the one that is being written.
    bytes: usize,
    /// Chunks that were added, and those that were written or dropped afterwards.
    added: u64,
    finished: u64,
    /// When the thread began to write a chunk; `None` while it waits for one.
    writing_since: Option<Instant>,
    has_thread: bool,
    /// Lines dropped since the last one that was added.
    dropped: u64,
    /// Lines dropped before there was a counter.
    uncounted: u64,
    counter: Option<IntCounter>,
}

impl Stderr {
    /// Starts the thread. `format` is that of the lines which do not come from `tracing`.
    pub(crate) fn new(format: LogFormat) -> Self {
        let (queue, added, finished) = Default::default();
        let stderr = Self(Arc::new(Shared { format, queue, added, finished }));
        stderr.start_thread(&mut stderr.0.queue.lock());
        stderr
    }

    /// Writes a message that is not a log line, such as an error of the command line.
    pub(crate) fn print(&self, message: &str) {
        self.add(message.as_bytes().to_vec(), 1, MAX_BYTES);
    }

    /// Writes a log line that no filter can suppress and that is formatted without `tracing`.
    pub(crate) fn log(&self, level: tracing::Level, message: &str) {
        self.add(self.0.format_line(level, message), 1, MAX_BYTES);
    }

    /// Writes a drawing of the progress bars, unless many lines are queued.
    pub(crate) fn draw(&self, drawing: String) {
        self.add(drawing.into_bytes(), 0, MAX_BYTES_BEFORE_DRAWING);
    }

    /// Waits until everything added so far is written or dropped, for at most half a second. Lines that are queued when
    /// the process ends are lost.
    pub(crate) fn flush(&self) {
        let mut queue = self.0.queue.lock();
        if !queue.has_thread {
            self.start_thread(&mut queue);
        }
        if !queue.has_thread {
            // This thread must write the lines that say why.
            let mut writer = ChunkWriter { deadline: Some(Instant::now() + FLUSH_LIMIT), ..ChunkWriter::default() };
            return self.0.write_chunks(queue, &mut writer);
        }
        let last = queue.added;
        // A write that has been blocked for as long as this will not end now.
        let blocked = queue.writing_since.map_or(Duration::ZERO, |since| since.elapsed());
        let limit = FLUSH_LIMIT.saturating_sub(blocked);
        self.0.finished.wait_while_for(&mut queue, |queue| queue.finished < last, limit);
    }

    /// Counts the lines that are dropped, including those dropped before this call.
    pub(crate) fn count_dropped(&self, counter: &IntCounter) {
        let mut queue = self.0.queue.lock();
        counter.inc_by(std::mem::take(&mut queue.uncounted));
        queue.counter = Some(counter.clone());
    }

    /// Whether it is a terminal that understands control sequences, so that progress bars can be drawn.
    pub(crate) fn can_draw(&self) -> bool {
        rustix::stdio::stderr().is_terminal()
            && std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb")
    }

    /// Whether text may be coloured, which `NO_COLOR` forbids: <https://no-color.org>.
    pub(crate) fn has_colors(&self) -> bool {
        self.can_draw() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
    }

    /// Columns and lines of the terminal.
    pub(crate) fn terminal_size(&self) -> (u16, u16) {
        match rustix::termios::tcgetwinsize(rustix::stdio::stderr()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
            _ => (80, 24),
        }
    }

    fn add(&self, bytes: Vec<u8>, lines: u64, max_bytes: usize) {
        let mut queue = self.0.queue.lock();
        if !queue.has_thread {
            self.start_thread(&mut queue);
        }
        if queue.chunks.len() >= MAX_LINES || queue.bytes + bytes.len() > max_bytes {
            queue.dropped += lines;
            queue.count_dropped(lines);
            return;
        }
        let dropped_before = if lines > 0 { std::mem::take(&mut queue.dropped) } else { 0 };
        queue.bytes += bytes.len();
        queue.added += 1;
        queue.chunks.push_back(Chunk { bytes, lines, dropped_before });
        drop(queue);
        self.0.added.notify_one();
    }

    /// A failure is tried again with the next line: there may be too many threads now.
    fn start_thread(&self, queue: &mut Queue) {
        let shared = Arc::clone(&self.0);
        let thread = std::thread::Builder::new().name("stderr".into()).spawn(move || {
            block_broken_pipes();
            shared.run();
        });
        queue.has_thread = thread.is_ok();
    }
}

/// Blocks SIGPIPE in this thread. `exec` restores the default of the ignored signal before it replaces the program: a
/// line that is written in between, to a pipe that was closed, would end the process instead.
#[allow(unsafe_code, reason = "no crate has a safe way to block a signal")]
fn block_broken_pipes() {
    let mut signals = std::mem::MaybeUninit::uninit();
    // SAFETY: `sigemptyset` initializes the set, and the former mask is not asked for.
    unsafe {
        libc::sigemptyset(signals.as_mut_ptr());
        libc::sigaddset(signals.as_mut_ptr(), libc::SIGPIPE);
        libc::pthread_sigmask(libc::SIG_BLOCK, signals.as_ptr(), std::ptr::null_mut());
    }
}

impl Queue {
    fn count_dropped(&mut self, lines: u64) {
        match &self.counter {
            Some(counter) => counter.inc_by(lines),
            None => self.uncounted += lines,
        }
    }
}

/// A line that cannot be added is dropped; that is not an error, because `tracing` would print it.
impl io::Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.add(line.to_vec(), 1, MAX_BYTES);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `tracing` writes each line with a single call of `write`.
impl MakeWriter<'_> for Stderr {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Shared {
    /// Writes what is added, forever.
    fn run(&self) {
        let mut writer = ChunkWriter::default();
        loop {
            let mut queue = self.queue.lock();
            self.added.wait_while(&mut queue, |queue| queue.chunks.is_empty());
            self.write_chunks(queue, &mut writer);
        }
    }

    /// Writes or drops what is queued.
    fn write_chunks<'a>(&'a self, mut queue: MutexGuard<'a, Queue>, writer: &mut ChunkWriter) {
        while let Some(chunk) = queue.chunks.pop_front() {
            queue.writing_since = Some(Instant::now());
            drop(queue);

            let is_written = self.write(writer, &chunk);

            queue = self.queue.lock();
            if !is_written {
                queue.count_dropped(chunk.lines);
            }
            queue.bytes -= chunk.bytes.len();
            queue.finished += 1;
            queue.writing_since = None;
            self.finished.notify_all();
        }
    }

    /// Writes a chunk, and before it how many lines were dropped.
    fn write(&self, writer: &mut ChunkWriter, chunk: &Chunk) -> bool {
        writer.dropped += chunk.dropped_before;
        let is_reported = chunk.lines == 0 || writer.dropped == 0 || {
            let (dropped, lines) = (writer.dropped, if writer.dropped == 1 { "line" } else { "lines" });
            let message = format!("{dropped} log {lines} dropped: standard error could not be written");
            writer.write_all(&self.format_line(tracing::Level::WARN, &message))
        };
        if is_reported && chunk.lines > 0 {
            writer.dropped = 0;
        }
        let is_written = is_reported && writer.write_all(&chunk.bytes);
        if !is_written {
            writer.dropped += chunk.lines;
        }
        is_written
    }

    /// A line in the format of those of `tracing`.
    fn format_line(&self, level: tracing::Level, message: &str) -> Vec<u8> {
        let mut timestamp = String::new();
        // Writing to a String cannot fail.
        let _ = SystemTime.format_time(&mut Writer::new(&mut timestamp));
        let line = match self.format {
            LogFormat::Text => format!("{timestamp} {level:>5} {message}"),
            LogFormat::Json => {
                let line = JsonLine { timestamp: &timestamp, level: level.as_str(), message, target: TARGET };
                serde_json::to_string(&line).unwrap_or_default()
            }
        };
        (line + "\n").into_bytes()
    }
}

#[derive(Serialize)]
struct JsonLine<'a> {
    timestamp: &'a str,
    level: &'a str,
    message: &'a str,
    target: &'a str,
}

/// Writes to the file descriptor, without the lock of `std::io::stderr`.
#[derive(Default)]
struct ChunkWriter {
    /// Lines that were dropped and not reported yet.
    dropped: u64,
    /// Whether a part of a line was written, so that the next one needs a line feed before it.
    torn: bool,
    /// When to drop what cannot be written at once; `None` on a thread that may wait.
    deadline: Option<Instant>,
}

impl ChunkWriter {
    /// Returns false if not all of it was written.
    fn write_all(&mut self, bytes: &[u8]) -> bool {
        if self.torn {
            self.torn = self.write(b"\n").is_err();
            if self.torn {
                return false;
            }
        }
        match self.write(bytes) {
            Ok(()) => true,
            Err(written) => {
                self.torn = written > 0;
                false
            }
        }
    }

    /// Returns the number of written bytes if they are not all.
    fn write(&self, bytes: &[u8]) -> Result<(), usize> {
        let mut written = 0;
        while written < bytes.len() {
            let end = match self.deadline {
                Some(deadline) if !is_writable(Some(deadline)) => return Err(written),
                Some(_) => bytes.len().min(written + PIPE_BUF),
                None => bytes.len(),
            };
            match rustix::io::write(rustix::stdio::stderr(), &bytes[written..end]) {
                Ok(count) if count > 0 => written += count,
                Err(Errno::INTR) => {}
                // Whoever shares the pipe has made it non-blocking.
                Err(Errno::AGAIN) => {
                    std::thread::sleep(WRITE_AGAIN_PAUSE);
                    is_writable(self.deadline);
                }
                Ok(_) | Err(_) => return Err(written),
            }
        }
        Ok(())
    }
}

/// Waits until a write is possible or fails at once; returns false after the deadline.
fn is_writable(deadline: Option<Instant>) -> bool {
    let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let timeout = timeout.and_then(|timeout| timeout.try_into().ok());
    let stderr = rustix::stdio::stderr();
    rustix::event::poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], timeout.as_ref()).is_ok_and(|ready| ready > 0)
}
