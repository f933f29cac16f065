//! Exceptions: each is a bug and ends in a crash report.

use super::end::end;
use super::exception_text::{ErrorCode, Vector, floating_point};
use super::registers::{General, Registers};
use crate::cpu::{self, EVENT_VECTOR, Stack};
use crate::memory::image;
use core::arch::global_asm;
use core::fmt;
use core::ptr;
use spin::Once;
use x86_64::VirtAddr;
use x86_64::registers::control::Cr2;
use x86_64::structures::idt::{Entry, HandlerFunc, InterruptDescriptorTable};

global_asm!(include_str!("exceptions.S"));

unsafe extern "C" {
    static exception_stubs: [u64; 32];
}

static IDT: Once<InterruptDescriptorTable> = Once::new();

/// The registers as `exceptions.S` and the processor push them, lowest address first.
#[repr(C)]
struct Frame {
    general: General,
    vector: u64,
    error_code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Loads the interrupt table.
pub fn init() {
    super::end::prepare_names();
    let table = IDT.call_once(|| {
        // SAFETY: the symbol is a table of 32 addresses, which is never written.
        let stubs = unsafe { &exception_stubs };
        let mut table = InterruptDescriptorTable::new();
        let mut set = |vector: usize, stub: u64| set_handler(&mut table, vector, stub);
        stubs.iter().enumerate().for_each(|(vector, stub)| set(vector, *stub));
        set(EVENT_VECTOR.into(), cpu::event_handler());
        table
    });
    table.load();
}

fn set_handler(table: &mut InterruptDescriptorTable, vector: usize, stub: u64) {
    let stack = match Vector(vector as u8) {
        Vector::DOUBLE_FAULT => Some(Stack::DoubleFault),
        Vector::NMI => Some(Stack::Nmi),
        Vector::PAGE_FAULT => Some(Stack::PageFault),
        _ => None,
    };
    let table = ptr::from_mut(table).cast::<Entry<HandlerFunc>>();
    // SAFETY: the table is an array of 256 entries of one layout, whatever the types of their
    // handlers are, and `vector` is below 256.
    let entry = unsafe { &mut *table.add(vector) };
    // SAFETY: the stub is made for exceptions or interrupts of this vector.
    let options = unsafe { entry.set_handler_addr(VirtAddr::new(stub)) };
    if let Some(stack) = stack {
        // SAFETY: `cpu::init_segments` has set up the stack with this index, for this vector
        // alone.
        unsafe { options.set_stack_index(stack as u16) };
    }
}

#[unsafe(no_mangle)]
extern "C" fn exception(frame: &Frame) -> ! {
    let Frame { general, rsp, rip, rflags, .. } = *frame;
    end(frame, frame, &Registers { general, rsp, rip, rflags })
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vector = Vector(self.vector as u8);
        write!(f, "{} at rip {:#x}", vector.name(), self.rip)?;
        match vector {
            Vector::PAGE_FAULT | Vector::DOUBLE_FAULT => {
                let address = Cr2::read_raw();
                write!(f, ", address {address:#x}")?;
                if image::guards().contains(&(address & !0xfff)) {
                    write!(f, " (a stack overflow)")?;
                } else if address < 0x1000 {
                    write!(f, " (page zero: a null pointer)")?;
                } else if let Some(part) = image::part(address) {
                    write!(f, " ({part})")?;
                }
            }
            Vector::INVALID_OPCODE | Vector::DEVICE_NOT_AVAILABLE => {
                if let Some(text) = floating_point(image::code_at(self.rip)) {
                    write!(f, ", {text}")?;
                }
            }
            _ => {}
        }
        let code = ErrorCode(vector, self.error_code);
        if code.exists() { write!(f, ", {code}") } else { Ok(()) }
    }
}
