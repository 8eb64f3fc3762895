//! Functions of the C library and system calls that fail, to see how the program behaves on other file systems.

use std::path::Path;
use std::process::Command;

/// Compiles C functions into a library for `LD_PRELOAD`; returns its path.
pub fn preload(folder: &Path, functions: &str) -> String {
    compile(folder, &["-shared", "-fPIC"], &format!("#include <errno.h>\n{functions}\n"))
}

/// Compiles a program that executes its arguments, for which a system call fails; returns its path. Unlike functions of
/// the C library, system calls are refused to Rust code that makes them itself.
pub fn refuse(folder: &Path, call: &str, errno: &str) -> String {
    let definitions = [format!("-DSYS_REFUSED=SYS_{call}"), format!("-DREFUSED_WITH={errno}")];
    compile(folder, &[&definitions[0], &definitions[1]], include_str!("refuse.c"))
}

fn compile(folder: &Path, arguments: &[&str], source: &str) -> String {
    let number = fastrand::u64(..);
    let (file, output) = (folder.join(format!("{number}.c")), folder.join(format!("{number}.out")));
    std::fs::write(&file, source).unwrap();
    let compiled = Command::new("cc").args(arguments).arg("-o").args([&output, &file]).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    output.to_str().unwrap().to_owned()
}
