//! The unit tests of those modules that need no machine, for the host. The library itself links
//! on bare metal alone: it has the panic handler, the allocator and the addresses of the image.
#![allow(dead_code, missing_docs, reason = "the library uses and documents what is here")]

extern crate alloc;

mod command_line;
mod executor;
mod metrics;
mod stages;
mod timers;

mod boot {
    mod loader;
    mod memory_map;
}

mod crash {
    mod backtrace;
    mod build_id;
    mod exception_text;
    mod patience;
    mod symbols;
}

mod entropy {
    mod generator;
}

mod memory {
    pub mod ram;
    mod runs;
}
