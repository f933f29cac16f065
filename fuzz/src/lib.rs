//! What a hostile domain may send, to everything that reads it: each module is a target, and its `run` does
//! with some bytes what that domain might do with them.
//!
//! `make fuzz` lets libFuzzer find the bytes; `tests/replay.rs` takes the [seeds](Target::seeds), the inputs
//! that once crashed something, and some that are made up but always the same ones.

pub mod command_line;
mod environment;
pub mod hostile_backend;
pub mod hostile_frontend;
pub mod hostile_netback;
mod input;
mod tasks;
pub mod wire;
pub mod xenstore;

/// A target.
pub struct Target {
    /// Its name, and its program's.
    pub name: &'static str,
    /// Takes an input. It panics when something is wrong.
    pub run: fn(&[u8]),
    /// Inputs that get far: what a domain does that keeps to the rules.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 6] = [
    Target { name: "hostile_backend", run: hostile_backend::run, seeds: hostile_backend::seeds },
    Target { name: "hostile_frontend", run: hostile_frontend::run, seeds: hostile_frontend::seeds },
    Target { name: "hostile_netback", run: hostile_netback::run, seeds: hostile_netback::seeds },
    Target { name: "xenstore", run: xenstore::run, seeds: xenstore::seeds },
    Target { name: "wire", run: wire::run, seeds: wire::seeds },
    Target { name: "command_line", run: command_line::run, seeds: command_line::seeds },
];
