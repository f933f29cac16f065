//! Fuzz targets for everything that reads what a hostile domain writes. Each module is a target:
//! its `run` plays a domain whose steps an input chooses.
//!
//! `make fuzz` lets libFuzzer find inputs. `tests/replay.rs` runs the [seeds](Target::seeds), the
//! inputs that once crashed a target, and a fixed set of generated ones.

pub mod command_line;
mod environment;
pub mod hostile_backend;
pub mod hostile_frontend;
pub mod hostile_idc;
pub mod hostile_netback;
mod input;
mod tasks;
pub mod wire;
pub mod xenstore;

/// Shows what a hostile domain makes grow.
#[global_allocator]
static ALLOCATOR: xen::testing::CountingAllocator = xen::testing::CountingAllocator;

/// A fuzz target.
pub struct Target {
    /// The name of the target and of its program.
    pub name: &'static str,
    /// Runs an input. Panics if the code under test misbehaves.
    pub run: fn(&[u8]),
    /// Inputs that reach far: the steps of a domain that keeps to the protocol.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: [Target; 7] = [
    Target { name: "hostile_backend", run: hostile_backend::run, seeds: hostile_backend::seeds },
    Target { name: "hostile_frontend", run: hostile_frontend::run, seeds: hostile_frontend::seeds },
    Target { name: "hostile_idc", run: hostile_idc::run, seeds: hostile_idc::seeds },
    Target { name: "hostile_netback", run: hostile_netback::run, seeds: hostile_netback::seeds },
    Target { name: "xenstore", run: xenstore::run, seeds: xenstore::seeds },
    Target { name: "wire", run: wire::run, seeds: wire::seeds },
    Target { name: "command_line", run: command_line::run, seeds: command_line::seeds },
];
