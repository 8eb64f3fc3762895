//! Outputs that cannot be written, for standard output and standard error of the program.

use std::fs::File;
use std::io::{ErrorKind, PipeReader, Write};
use std::process::Stdio;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// Why an output cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unwritable {
    /// The descriptor is closed.
    Closed,
    /// A pipe whose reader is gone.
    ReaderGone,
    /// A full disk.
    Full,
    /// A full pipe that nobody reads.
    Blocked,
}

impl Unwritable {
    pub const ALL: [Self; 4] = [Self::Closed, Self::ReaderGone, Self::Full, Self::Blocked];

    /// A program that executes its arguments with the descriptor closed; no program for the others.
    pub fn prefix(self, descriptor: u32) -> Vec<String> {
        match self {
            Self::Closed => ["sh", "-c", &format!("exec \"$@\" {descriptor}>&-"), "sh"].map(str::to_owned).to_vec(),
            _ => Vec::new(),
        }
    }

    /// The output for the program, and the reader that must be kept while it runs.
    pub fn open(self) -> (Stdio, Option<PipeReader>) {
        match self {
            Self::Closed => (Stdio::null(), None),
            Self::Full => (File::options().write(true).open("/dev/full").unwrap().into(), None),
            Self::ReaderGone => (std::io::pipe().unwrap().1.into(), None),
            Self::Blocked => {
                let (reader, mut writer) = std::io::pipe().unwrap();
                let flags = fcntl_getfl(&writer).unwrap();
                fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
                // Single bytes at the end, so that no room is left for one.
                for size in [4096, 1] {
                    while writer.write(&vec![b'\n'; size]).is_ok() {}
                }
                assert_eq!(writer.write(b"\n").unwrap_err().kind(), ErrorKind::WouldBlock);
                fcntl_setfl(&writer, flags).unwrap();
                (writer.into(), Some(reader))
            }
        }
    }
}
