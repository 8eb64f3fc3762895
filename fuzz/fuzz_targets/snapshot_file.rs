//! The snapshot file: reading returns either an error or a catalog that can be written and read again. Random input
//! never has a valid checksum, so it is appended to inputs that start with `+`.
#![no_main]

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use model_catalog::postgres::temp_dir::TempDir;
use model_catalog::snapshot_file::{self as file, PersistedSnapshot};
use xxhash_rust::xxh3::xxh3_128;

/// The fuzzer ends without destructors, which the directory does not need.
static DIRECTORY: LazyLock<TempDir> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    TempDir::create(folder.join(format!("fuzz-snapshot-{}", std::process::id()))).expect("a directory can be created")
});
static FILE: LazyLock<PathBuf> = LazyLock::new(|| DIRECTORY.path().join("snapshot"));

fuzz_target!(|data: &[u8]| {
    let mut data = data.to_vec();
    if data.first() == Some(&b'+') {
        data.remove(0);
        let trailer = format!("{{\"checksum\":\"{:032x}\"}}\n", xxh3_128(&data));
        data.extend_from_slice(trailer.as_bytes());
    }
    std::fs::write(&*FILE, &data).expect("the file can be written");
    let Ok(PersistedSnapshot { snapshot, position, as_of, rules, structure, database_started }) = file::read(&FILE)
    else {
        return;
    };
    let (revision, bytes, length) = (snapshot.revision(), snapshot.bytes(), snapshot.len());
    let saved = PersistedSnapshot { snapshot: Arc::new(snapshot), position, as_of, rules, structure, database_started };
    file::write(&FILE, &saved).expect("the catalog can be written");
    let again = file::read(&FILE).expect("and read again");
    assert_eq!((revision, bytes, length), (again.snapshot.revision(), again.snapshot.bytes(), again.snapshot.len()));
    assert_eq!((saved.position, saved.as_of, saved.rules), (again.position, again.as_of, again.rules));
});
