//! The end of a guest that cannot go on, and its report.
//!
//! # What a crash does
//!
//! A panic, an exception of the processor (a null pointer, a stack that is used up, an
//! instruction that does not exist) and an allocation for which there is no memory end the
//! domain. Nothing unwinds and nothing is dropped: what the app has written and the backend has
//! not yet taken is lost, and the backend learns of the end from Xen. First there is a report, on
//! the domain's console and in Xen's log:
//!
//! ```text
//! xensock-kernel: page fault (#PF) at rip 0x103031, address 0x10 (page zero: a null pointer), write: the page is not mapped
//! rax 0000000000000010 rbx 000000000000000a rcx 0000000000000000
//! ...
//! build id 970b730c94ab0dd576df38f07e0bf1cf4945d829
//!    0 0x103031 faults::write_to+0x11
//!    1 0x102beb kernel::system::main_task::<core::result::Result, faults::main::{closure#0}>::{closure#0}+0xbab
//!    2 0x11955e kernel::system::run::{closure#2}+0x4e
//! ...
//! xensock-kernel: end of the report
//! ```
//!
//! It has the cause, the registers (of a panic: as they are in the panic handler), the build id,
//! and whence the place was called: the instruction first, then the calls that led there, at most
//! 32. Inlined functions do not show. The report needs neither heap nor logger. On the console it
//! waits for the reader, for five seconds at most, so it is whole also when it is longer than the
//! console's ring. In Xen's log (`xl dmesg`) its lines begin with `(dN)`, N being the domain's
//! number; there they need `guest_loglvl=all` on Xen's command line. A crash within the report
//! makes a second, shorter report; one within that just ends the domain.
//!
//! `xl trigger DOMAIN nmi` makes a guest crash that hangs: the report says where.
//!
//! # What follows
//!
//! The domain shuts down with the reason *crash*, and the toolstack does what `on_crash` in the
//! domain's configuration says: `destroy` (xl's default), `restart`, `preserve` (`xl list` shows
//! it with a `c`), `coredump-destroy` or `coredump-restart`; see `man xl.cfg`. A service wants
//! `on_crash = "restart"`.
//!
//! # Names and lines
//!
//! The names come from a list in the image, which `kernel/symbols-ld` adds when it is the linker,
//! as it is for `make kernel` and `make examples`; `strip` leaves it in place. An image that
//! plain `ld` linked has a report with addresses only. The image's file before `strip` has the
//! lines, too, and inlined functions:
//!
//! ```text
//! addr2line -Cfipe target/x86_64-xen-pvh/release/examples/faults 0x103031 0x102beb
//! ```
//!
//! The file is the right one if `readelf -n` prints the report's build id for it. (An address of
//! a call is that of its last byte, which belongs to the call's line.)

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
