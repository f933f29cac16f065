//! What an exception means, in words (Intel SDM volume 3, chapter 6; AMD APM volume 2, chapter 8).

use core::fmt;

/// A vector below 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vector(pub u8);

impl Vector {
    /// A non-maskable interrupt: `xl trigger DOMAIN nmi`.
    pub const NMI: Vector = Vector(2);
    /// An exception while another was being delivered.
    pub const DOUBLE_FAULT: Vector = Vector(8);
    /// An access that the page tables do not allow.
    pub const PAGE_FAULT: Vector = Vector(14);

    /// The name and the mnemonic.
    pub fn name(self) -> &'static str {
        match self.0 {
            0 => "division error (#DE)",
            1 => "debug exception (#DB)",
            2 => "non-maskable interrupt",
            3 => "breakpoint (#BP)",
            4 => "overflow (#OF)",
            5 => "bound range exceeded (#BR)",
            6 => "invalid opcode (#UD)",
            7 => "device not available (#NM)",
            8 => "double fault (#DF)",
            10 => "invalid TSS (#TS)",
            11 => "segment not present (#NP)",
            12 => "stack segment fault (#SS)",
            13 => "general protection fault (#GP)",
            14 => "page fault (#PF)",
            16 => "floating-point error (#MF)",
            17 => "alignment check (#AC)",
            18 => "machine check (#MC)",
            19 => "SIMD floating-point exception (#XM)",
            20 => "virtualization exception (#VE)",
            21 => "control protection exception (#CP)",
            28 => "hypervisor injection exception (#HV)",
            29 => "VMM communication exception (#VC)",
            30 => "security exception (#SX)",
            _ => "reserved exception",
        }
    }
}

/// An error code, with the vector that says how to read it.
#[derive(Clone, Copy, Debug)]
pub struct ErrorCode(pub Vector, pub u64);

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ErrorCode(vector, code) = *self;
        match vector.0 {
            14 => {
                let access = match code {
                    _ if code & 1 << 4 != 0 => "execute",
                    _ if code & 1 << 1 != 0 => "write",
                    _ => "read",
                };
                let why = match code & 1 {
                    0 => "the page is not mapped",
                    _ => "the page's rights forbid it",
                };
                write!(f, "{access}: {why}")?;
                if code & 1 << 3 != 0 {
                    write!(f, "; a reserved bit is set in the page tables")?;
                }
                Ok(())
            }
            10..=13 if code != 0 => {
                let table = match code >> 1 & 0b11 {
                    0 => "GDT",
                    2 => "LDT",
                    _ => "IDT",
                };
                write!(f, "{table} entry {}", code >> 3 & 0x1fff)?;
                if code & 1 != 0 { write!(f, ", by an external event") } else { Ok(()) }
            }
            _ => write!(f, "code {code:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_fault_says_who_tried_what() {
        for (code, text) in [
            (0b0_0000, "read: the page is not mapped"),
            (0b0_0011, "write: the page's rights forbid it"),
            (0b1_0001, "execute: the page's rights forbid it"),
            (
                0b0_1001,
                "read: the page's rights forbid it; a reserved bit is set in the page tables",
            ),
        ] {
            assert_eq!(ErrorCode(Vector::PAGE_FAULT, code).to_string(), text);
        }
    }

    #[test]
    fn a_selector_is_taken_apart() {
        let gp = Vector(13);
        assert_eq!(ErrorCode(gp, 0).to_string(), "code 0x0");
        assert_eq!(ErrorCode(gp, 0x18).to_string(), "GDT entry 3");
        assert_eq!(ErrorCode(gp, 0x203).to_string(), "IDT entry 64, by an external event");
    }

    #[test]
    fn every_vector_has_a_name() {
        assert_eq!(Vector::DOUBLE_FAULT.name(), "double fault (#DF)");
        assert_eq!(Vector(31).name(), "reserved exception");
    }
}
