//! Libraries that replace functions of the C library, to see how the program behaves on other file systems.

use std::path::Path;
use std::process::Command;

/// Compiles C functions into a library for `LD_PRELOAD`; returns its path.
pub fn preload(folder: &Path, functions: &str) -> String {
    let number = fastrand::u64(..);
    let (source, library) = (folder.join(format!("{number}.c")), folder.join(format!("{number}.so")));
    std::fs::write(&source, format!("#include <errno.h>\n{functions}\n")).unwrap();
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    library.to_str().unwrap().to_owned()
}
