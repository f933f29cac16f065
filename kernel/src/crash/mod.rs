//! Crashes and their reports.
//!
//! # What a crash does
//!
//! A panic, an exception (such as a null pointer, a stack overflow or an invalid instruction) and
//! a failed allocation end the domain. There is no unwinding and nothing is dropped. Data that
//! the app has written and the backend has not taken yet is lost. First, a report is written to
//! the domain's console and to Xen's log:
//!
//! ```text
//! xensock-kernel: page fault (#PF) at rip 0x103031, address 0x10 (page zero: a null pointer), ...
//! rax 0000000000000010 rbx 000000000000000a rcx 0000000000000000
//! ...
//! build id 970b730c94ab0dd576df38f07e0bf1cf4945d829
//!    0 0x103031 faults::write_to+0x11
//!    1 0x102beb kernel::system::main_task::<core::result::Result, ...>::{closure#0}+0xbab
//!    2 0x11955e kernel::system::run::{closure#2}+0x4e
//! ...
//! xensock-kernel: end of the report
//! ```
//!
//! It contains the cause, the registers (for a panic: those in the panic handler), the build id,
//! and a backtrace of at most 32 addresses: the instruction, then the calls that led to it,
//! without inlined functions. It needs neither heap nor logger. The console's reader has five
//! seconds to read it, so it may be longer than the console's ring. In Xen's log (`xl dmesg`) its
//! lines begin with `(dN)`, for domain N; this needs `guest_loglvl=all` on Xen's command line. A
//! crash within the report makes a second, shorter report. A crash within that one just ends the
//! domain.
//!
//! `xl trigger DOMAIN nmi` crashes a guest that hangs. The report shows where it was.
//!
//! # What the toolstack does
//!
//! The domain shuts down with the reason *crash*, and the toolstack acts as `on_crash` in the
//! domain's configuration says: `destroy` (xl's default), `restart`, `preserve` (`xl list` then
//! shows a `c`), `coredump-destroy` or `coredump-restart`; see `man xl.cfg`. For a service, use
//! `on_crash = "restart"`.
//!
//! # Names and lines
//!
//! The names come from a packed list in the image, which the linker's wrapper `kernel/symbols-ld`
//! adds; `strip` keeps it. Without the wrapper, a report has addresses only. The file before
//! `strip` also knows lines and inlined functions:
//!
//! ```text
//! addr2line -Cfipe target/x86_64-xen-pvh/release/examples/faults 0x103031 0x102beb
//! ```
//!
//! The file is the right one if `readelf -n` prints the report's build id. (The address of a call
//! is its last byte, which belongs to the call's line.)

mod backtrace;
mod build_id;
#[allow(unsafe_code, reason = "reads the words of stacks")]
mod end;
mod exception_text;
#[allow(unsafe_code, reason = "sets up the interrupt table; shares symbols with assembly")]
mod exceptions;
mod output;
mod patience;
#[allow(unsafe_code, reason = "stores registers")]
mod registers;
mod symbols;

pub use build_id::BuildId;
pub use end::{build_id, panic};
pub(crate) use end::{halt, set_xen, shut_down};
pub(crate) use exceptions::init as init_exceptions;
