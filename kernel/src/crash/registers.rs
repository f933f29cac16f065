//! The processor's registers, for crash reports.

use core::fmt;

/// The general registers without the stack pointer, in the order in which `exceptions.S` pushes
/// them.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct General {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
}

/// The general registers, stack pointer, instruction pointer and flags.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Registers {
    pub general: General,
    pub rsp: u64,
    pub rip: u64,
    pub rflags: u64,
}

impl Registers {
    /// The registers at the place of this inlined call.
    #[inline(always)]
    pub fn here() -> Registers {
        use core::mem::offset_of;
        let mut registers = Registers::default();
        // SAFETY: the stores go to the named fields, and the stack is unchanged afterwards.
        unsafe {
            core::arch::asm!(
                "mov [{to} + {rax}], rax",
                "mov [{to} + {rbx}], rbx",
                "mov [{to} + {rcx}], rcx",
                "mov [{to} + {rdx}], rdx",
                "mov [{to} + {rsi}], rsi",
                "mov [{to} + {rdi}], rdi",
                "mov [{to} + {rbp}], rbp",
                "mov [{to} + {rsp}], rsp",
                "mov [{to} + {r8}], r8",
                "mov [{to} + {r9}], r9",
                "mov [{to} + {r10}], r10",
                "mov [{to} + {r11}], r11",
                "mov [{to} + {r12}], r12",
                "mov [{to} + {r13}], r13",
                "mov [{to} + {r14}], r14",
                "mov [{to} + {r15}], r15",
                "lea {word}, [rip]",
                "mov [{to} + {rip}], {word}",
                "pushfq",
                "pop {word}",
                "mov [{to} + {rflags}], {word}",
                to = in(reg) &raw mut registers,
                word = out(reg) _,
                rax = const offset_of!(General, rax),
                rbx = const offset_of!(General, rbx),
                rcx = const offset_of!(General, rcx),
                rdx = const offset_of!(General, rdx),
                rsi = const offset_of!(General, rsi),
                rdi = const offset_of!(General, rdi),
                rbp = const offset_of!(General, rbp),
                rsp = const offset_of!(Registers, rsp),
                r8 = const offset_of!(General, r8),
                r9 = const offset_of!(General, r9),
                r10 = const offset_of!(General, r10),
                r11 = const offset_of!(General, r11),
                r12 = const offset_of!(General, r12),
                r13 = const offset_of!(General, r13),
                r14 = const offset_of!(General, r14),
                r15 = const offset_of!(General, r15),
                rip = const offset_of!(Registers, rip),
                rflags = const offset_of!(Registers, rflags),
            );
        }
        registers
    }
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Registers { general: g, rsp, rip, rflags } = self;
        writeln!(f, "rax {:016x} rbx {:016x} rcx {:016x}", g.rax, g.rbx, g.rcx)?;
        writeln!(f, "rdx {:016x} rsi {:016x} rdi {:016x}", g.rdx, g.rsi, g.rdi)?;
        writeln!(f, "rbp {:016x} rsp {rsp:016x} r8  {:016x}", g.rbp, g.r8)?;
        writeln!(f, "r9  {:016x} r10 {:016x} r11 {:016x}", g.r9, g.r10, g.r11)?;
        writeln!(f, "r12 {:016x} r13 {:016x} r14 {:016x}", g.r12, g.r13, g.r14)?;
        write!(f, "r15 {:016x} rip {rip:016x} rflags {rflags:08x}", g.r15)
    }
}
