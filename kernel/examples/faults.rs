//! Breaks one of the machine's rules, to show that it is enforced, and what the report looks
//! like. `fault=` on the command line has one of the names below. The guest always crashes.
#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "breaks the rules on purpose")]

extern crate alloc;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::arch::asm;
use core::fmt;
use core::hint::black_box;
use core::ptr;
use depths_from_which_no_call_returns_to_tell_how_it_was::recurse;
use kernel::System;

kernel::entry!(main);

/// The faults and their names.
const FAULTS: [(&str, fn()); 27] = [
    ("write-null", || write_to(ptr::null_mut())),
    ("read-null", || read_from(ptr::null())),
    ("call-null", || call(ptr::null())),
    ("write-near-null", || write_to(at(0x10))),
    ("read-near-null", || read_from(at(0xff8))),
    ("call-near-null", || call(at(0xff8))),
    ("write-code", || write_to(write_to as *mut u8)),
    ("write-constant", || write_to(CONSTANT.as_ptr().cast_mut())),
    ("write-names", || write_to((&raw const image_symbols_start).cast_mut())),
    ("execute-constant", || call(RET.as_ptr())),
    ("execute-data", || call((&raw const DATA).cast())),
    ("execute-heap", || call(black_box(Box::leak(Box::new(RET))).as_ptr())),
    ("execute-stack", || call(black_box([RET[0]; 1]).as_ptr())),
    ("nothing-there", || write_to(at(1 << 46))),
    ("not-canonical", || write_to(at(1 << 47))),
    ("stack", || log::info!("depth {}", recurse(0, u64::MAX))),
    ("stack-in-panic", panic_without_stack),
    // SAFETY: it is meant to fail.
    ("opcode", || unsafe { asm!("ud2") }),
    // SAFETY: it is meant to fail.
    ("sse", || unsafe { asm!("pxor xmm0, xmm0") }),
    // SAFETY: it is meant to fail.
    ("avx", || unsafe { asm!("vzeroupper") }),
    // SAFETY: it is meant to fail.
    ("x87", || unsafe { asm!("fld1") }),
    // SAFETY: it is meant to fail.
    ("division", || unsafe { asm!("div {0:e}", in(reg) 0, out("eax") _, out("edx") _) }),
    ("panic", || panic!("as the command line asked")),
    ("panic-in-panic", || panic!("the message is {}", Unspeakable)),
    ("fault-in-panic", || panic!("the message is {}", Unreadable)),
    ("memory", exhaust),
    ("hang", hang),
];

unsafe extern "C" {
    static image_symbols_start: u8;
    static stack_guard: u8;
}

/// A constant, in a read-only page.
static CONSTANT: [u8; 16] = *b"may only be read";

/// A function that returns at once, in a page of constants.
static RET: [u8; 1] = [0xc3];

/// The same, in a writable page.
static mut DATA: [u8; 1] = RET;

/// Formatting it panics.
struct Unspeakable;

impl fmt::Display for Unspeakable {
    #[inline(never)]
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("{Unspeakable}, too")
    }
}

/// Formatting it faults.
struct Unreadable;

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        read_from(ptr::null());
        f.write_str("read")
    }
}

fn at<T>(address: usize) -> *mut T {
    ptr::without_provenance_mut(address)
}

#[inline(never)]
fn write_to(address: *mut u8) {
    // SAFETY: it is meant to fail.
    unsafe { black_box(address).write_volatile(1) };
}

#[inline(never)]
fn read_from(address: *const u8) {
    // SAFETY: it is meant to fail.
    black_box(unsafe { black_box(address).read_volatile() });
}

#[inline(never)]
fn call(code: *const u8) {
    // SAFETY: it is meant to fail.
    unsafe { asm!("call {}", in(reg) black_box(code), clobber_abi("C")) };
}

fn exhaust() {
    loop {
        black_box(Box::leak(Box::new([1u8; 100_000])));
    }
}

/// Its long name makes a report of many calls longer than the console's ring.
mod depths_from_which_no_call_returns_to_tell_how_it_was {
    use super::*;

    /// Calls itself until `left` bytes of the stack are left, or none.
    #[inline(never)]
    pub fn recurse(depth: u64, left: u64) -> u64 {
        let frame = black_box([depth; 8]);
        let lowest = (&raw const stack_guard).addr() as u64 + 4096;
        if left != u64::MAX && (frame.as_ptr().addr() as u64) < lowest + left {
            panic!("only {left} bytes of the stack are left");
        }
        recurse(depth + 1, left) + frame[0]
    }
}

/// Panics with too little stack for the panic's own code.
fn panic_without_stack() {
    log::info!("depth {}", recurse(0, 300));
}

/// Never yields, so that it ignores all events.
#[inline(never)]
fn hang() {
    log::info!("hanging");
    loop {
        core::hint::spin_loop();
    }
}

async fn main(system: System) -> Result<(), String> {
    let line = core::str::from_utf8(system.command_line()).unwrap_or_default();
    let name = line.split_whitespace().find_map(|word| word.strip_prefix("fault="));
    let name = name.ok_or("write fault= and a name")?;
    let (_, fault) = FAULTS.iter().find(|(known, _)| *known == name).ok_or_else(|| {
        let names = FAULTS.map(|(name, _)| name).join(", ");
        format!("unknown fault {name}; the names are {names}")
    })?;
    fault();
    Err(format!("{name}: nothing happened"))
}
