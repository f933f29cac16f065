//! Breaks one of the machine's rules, which the command line names, to show that the rule is kept:
//! `fault=` and one of the names below. It never ends well.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use core::arch::asm;
use core::hint::black_box;
use core::mem::transmute;
use core::ptr;
use kernel::System;

kernel::entry!(main);

/// Each way to break a rule, with its name.
const FAULTS: [(&str, fn()); 10] = [
    ("null", || write_to(ptr::null_mut())),
    ("write-code", || write_to(write_to as *mut u8)),
    ("write-constant", || write_to(CONSTANT.as_ptr().cast_mut())),
    ("execute-heap", || execute(black_box(Box::leak(Box::new(RET))).as_ptr())),
    ("execute-stack", || execute(black_box([RET[0]; 1]).as_ptr())),
    ("nothing-there", || write_to(ptr::without_provenance_mut(1 << 46))),
    ("stack", || log::info!("depth {}", endless(0))),
    // SAFETY: it is meant to fail.
    ("opcode", || unsafe { asm!("ud2") }),
    ("panic", || panic!("as the command line asked")),
    ("memory", exhaust),
];

/// A constant, in a page that may only be read.
static CONSTANT: [u8; 16] = *b"may only be read";

/// A function that returns at once.
static RET: [u8; 1] = [0xc3];

fn write_to(address: *mut u8) {
    // SAFETY: it is meant to fail.
    unsafe { black_box(address).write_volatile(1) };
}

fn execute(code: *const u8) {
    // SAFETY: it is meant to fail.
    unsafe { transmute::<*const u8, extern "C" fn()>(black_box(code))() };
}

fn exhaust() {
    loop {
        black_box(Box::leak(Box::new([1u8; 100_000])));
    }
}

fn endless(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    if frame[0] == u64::MAX {
        return 0;
    }
    endless(depth + 1) + frame[0]
}

async fn main(system: System) -> Result<(), String> {
    let line = core::str::from_utf8(system.command_line()).unwrap_or_default();
    let name = line.split_whitespace().find_map(|word| word.strip_prefix("fault="));
    let name = name.ok_or("say fault= and a name")?;
    let (_, fault) = FAULTS.iter().find(|(known, _)| *known == name).ok_or_else(|| {
        let names = FAULTS.map(|(name, _)| name).join(", ");
        format!("there is no fault {name}, but {names}")
    })?;
    fault();
    Err(format!("{name}: nothing happened").to_string())
}
