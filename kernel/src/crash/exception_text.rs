//! Texts for exceptions (Intel SDM volume 3, chapter 6; AMD APM volume 2, chapter 8).

use core::fmt;

/// A vector below 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vector(pub u8);

impl Vector {
    /// A non-maskable interrupt: `xl trigger DOMAIN nmi`.
    pub const NMI: Vector = Vector(2);
    /// An invalid instruction, or one that is disabled.
    pub const INVALID_OPCODE: Vector = Vector(6);
    /// An instruction of the floating point unit.
    pub const DEVICE_NOT_AVAILABLE: Vector = Vector(7);
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

/// The text for an instruction that uses floating point registers, which are switched off (see
/// [the crate's documentation](crate#no-floating-point-registers)); `None` for any other. `code`
/// begins at the instruction pointer.
pub fn floating_point(code: &[u8]) -> Option<&'static str> {
    // Segments, REX, sizes, LOCK and REP.
    const PREFIXES: [u8; 11] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3];
    let is_prefix = |byte: &u8| matches!(byte, 0x40..=0x4f) || PREFIXES.contains(byte);
    let start = code.iter().position(|byte| !is_prefix(byte))?;
    let next = |n: usize| code.get(start + n).copied();
    match (next(0)?, next(1), next(2)) {
        (0x9b | 0xd8..=0xdf, ..) => Some("an x87 instruction, but the FPU is switched off"),
        (0x62 | 0xc4 | 0xc5, ..) => Some("an AVX instruction, but SSE and AVX are switched off"),
        // Integer opcodes among those of SSE, such as CRC32 and MOVBE.
        (0x0f, Some(0x38), Some(0xf0..)) => None,
        (0x0f, Some(0x10..=0x17 | 0x28..=0x2f | 0x38 | 0x3a | 0x50..=0x7f), _)
        | (0x0f, Some(0xae | 0xc2 | 0xc4..=0xc6 | 0xd0..=0xfe), _) => {
            Some("an SSE or MMX instruction, but SSE and MMX are switched off")
        }
        _ => None,
    }
}

/// An error code and the vector, which determines its format.
#[derive(Clone, Copy, Debug)]
pub struct ErrorCode(pub Vector, pub u64);

impl ErrorCode {
    /// Whether the vector has an error code.
    pub fn exists(self) -> bool {
        matches!(self.0.0, 8 | 10..=14 | 17 | 21 | 29 | 30)
    }
}

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
    fn a_page_fault_shows_the_access_and_its_cause() {
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
    fn a_selector_shows_table_and_entry() {
        let gp = Vector(13);
        assert_eq!(ErrorCode(gp, 0).to_string(), "code 0x0");
        assert_eq!(ErrorCode(gp, 0x18).to_string(), "GDT entry 3");
        assert_eq!(ErrorCode(gp, 0x203).to_string(), "IDT entry 64, by an external event");
    }

    #[test]
    fn not_every_vector_has_an_error_code() {
        assert!(!ErrorCode(Vector::INVALID_OPCODE, 0).exists());
        assert!(ErrorCode(Vector::DOUBLE_FAULT, 0).exists());
    }

    #[test]
    fn floating_point_instructions_are_recognized() {
        for (code, said) in [
            (&[0xd9, 0xe8][..], "x87"),               // fld1
            (&[0x9b], "x87"),                         // fwait
            (&[0x66, 0x0f, 0xef, 0xc0], "SSE"),       // pxor xmm0, xmm0
            (&[0x0f, 0x28, 0xc1], "SSE"),             // movaps xmm0, xmm1
            (&[0xf2, 0x48, 0x0f, 0x2a, 0xc0], "SSE"), // cvtsi2sd xmm0, rax
            (&[0x66, 0x0f, 0x38, 0x00, 0xc1], "SSE"), // pshufb xmm0, xmm1
            (&[0x0f, 0x77], "MMX"),                   // emms
            (&[0x0f, 0xae, 0x10], "SSE"),             // ldmxcsr [rax]
            (&[0xc5, 0xf8, 0x77], "AVX"),             // vzeroupper
        ] {
            let text = floating_point(code).unwrap_or_default();
            assert!(text.contains(said) && text.contains("switched off"), "{code:x?}: {text}");
        }
        for code in [
            &[][..],
            &[0x0f],
            &[0x0f, 0x0b],                   // ud2
            &[0x0f, 0xff, 0xc0],             // ud0
            &[0xf2, 0x0f, 0x38, 0xf1, 0xc1], // crc32
            &[0x66; 15],
            &[0xcc],
        ] {
            assert_eq!(floating_point(code), None, "{code:x?}");
        }
    }

    #[test]
    fn every_vector_has_a_name() {
        assert_eq!(Vector::DOUBLE_FAULT.name(), "double fault (#DF)");
        assert_eq!(Vector(31).name(), "reserved exception");
    }
}
