//! Standard output, which holds the results of commands. Writing to it waits for its reader, as in any program.

use std::io::{self, BufWriter, ErrorKind, StdoutLock, Write};

/// Exit status if the reader closed it: the one that shells report for a program that ends by SIGPIPE.
pub(crate) const CLOSED: u8 = 141;

/// Why standard output could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StdoutError {
    /// The other end of the pipe was closed, as `head` does. The reader knows, so no message is printed.
    #[error("the reader of standard output closed it")]
    Closed,
    /// Any other error, such as a full disk.
    #[error("cannot write to standard output")]
    Write(#[source] io::Error),
}

impl From<io::Error> for StdoutError {
    fn from(error: io::Error) -> Self {
        if error.kind() == ErrorKind::BrokenPipe { Self::Closed } else { Self::Write(error) }
    }
}

/// Prints a text.
pub(crate) fn print(text: &str) -> Result<(), StdoutError> {
    let mut stdout = buffered();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// A buffer in front of standard output; it must be flushed.
#[allow(clippy::disallowed_methods, reason = "errors are handled by the callers")]
pub(crate) fn buffered() -> BufWriter<StdoutLock<'static>> {
    BufWriter::new(io::stdout().lock())
}
