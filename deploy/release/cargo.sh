#!/bin/sh
# Cargo for maturin: records the versions of all crates in the program, where `cargo audit bin` finds them.
unset CARGO
exec cargo-auditable auditable "$@"
