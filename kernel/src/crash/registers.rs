//! The processor's registers, for crash reports.

use core::arch::asm;
use core::fmt;
use core::mem::offset_of;

macro_rules! general {
    ($($name:ident)*) => {
        /// The general registers without the stack pointer, in the order in which `exceptions.S`
        /// pushes them.
        #[derive(Clone, Copy, Debug, Default)]
        #[repr(C)]
        pub struct General {
            $(pub $name: u64,)*
        }

        impl Registers {
            /// The registers at the place of this inlined call.
            #[inline(always)]
            pub fn here() -> Registers {
                let mut registers = Registers::default();
                // SAFETY: the stores go to the named fields, and the stack is unchanged afterwards.
                unsafe {
                    asm!(
                        $(concat!("mov [{to} + {", stringify!($name), "}], ", stringify!($name)),)*
                        "mov [{to} + {rsp}], rsp",
                        "lea {word}, [rip]",
                        "mov [{to} + {rip}], {word}",
                        "pushfq",
                        "pop {word}",
                        "mov [{to} + {rflags}], {word}",
                        to = in(reg) &raw mut registers,
                        word = out(reg) _,
                        $($name = const offset_of!(Registers, general.$name),)*
                        rsp = const offset_of!(Registers, rsp),
                        rip = const offset_of!(Registers, rip),
                        rflags = const offset_of!(Registers, rflags),
                    );
                }
                registers
            }
        }
    };
}

general! { r15 r14 r13 r12 r11 r10 r9 r8 rbp rdi rsi rdx rcx rbx rax }

/// The general registers, stack pointer, instruction pointer and flags.
#[derive(Clone, Copy, Debug, Default)]
pub struct Registers {
    pub general: General,
    pub rsp: u64,
    pub rip: u64,
    pub rflags: u64,
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
