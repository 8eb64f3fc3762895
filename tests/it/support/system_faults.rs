//! Faults of the machine: a library that a server preloads makes functions of the C library fail.

use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

use super::TempFolder;

/// Compiled once per run. Every machine that builds Rust programs has `cc`, which links them.
static LIBRARY: LazyLock<String> = LazyLock::new(|| {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/system_faults.c");
    let library = concat!(env!("CARGO_TARGET_TMPDIR"), "/system_faults.so");
    let compiled = format!("{library}.{}", std::process::id());
    let arguments = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", &compiled, source, "-ldl"];
    let output = Command::new("cc").args(arguments).output().expect("cc runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::rename(compiled, library).unwrap();
    library.into()
});

/// The faults of one server. `system_faults.c` lists them by name.
pub struct SystemFaults(TempFolder);

impl SystemFaults {
    pub fn new() -> Self {
        Self(TempFolder::new("system-faults"))
    }

    /// The settings with which a server must be started.
    pub fn settings(&self) -> [(&str, &str); 2] {
        [("LD_PRELOAD", &*LIBRARY), ("SYSTEM_FAULTS", self.0.to_str().unwrap())]
    }

    fn file(&self, fault: &str) -> PathBuf {
        self.0.join(fault)
    }

    /// Begins a fault.
    pub fn begin(&self, fault: &str) {
        std::fs::write(self.file(fault), "").unwrap();
    }

    /// Ends a fault.
    pub fn end(&self, fault: &str) {
        std::fs::remove_file(self.file(fault)).unwrap();
    }

    /// Whether a fault goes on: one that occurs once ends when it has occurred.
    pub fn is_active(&self, fault: &str) -> bool {
        self.file(fault).exists()
    }
}
