//! The image's build id, which the linker computes from the image's contents. It identifies
//! the file with symbols for a crash report: `readelf -n` prints the file's build id.

use core::fmt;

/// A build id; `unknown` in an image that was linked without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildId<'a>(Option<&'a [u8]>);

/// An ELF note's name length, description length and type.
const HEADER: usize = 12;
/// `NT_GNU_BUILD_ID`.
const BUILD_ID: u32 = 3;

impl<'a> BuildId<'a> {
    /// Reads the section `.note.gnu.build-id`, which has a single note.
    pub fn from_note(note: &'a [u8]) -> BuildId<'a> {
        BuildId(Self::read(note))
    }

    fn read(note: &'a [u8]) -> Option<&'a [u8]> {
        let word = |at: usize| Some(u32::from_le_bytes(note.get(at..at + 4)?.try_into().ok()?));
        let (name, length, kind) = (word(0)?, word(4)? as usize, word(8)?);
        let rest = note.get(HEADER..)?;
        if name != 4 || kind != BUILD_ID || length == 0 {
            return None;
        }
        rest.strip_prefix(b"GNU\0")?.get(..length)
    }
}

impl fmt::Display for BuildId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(bytes) => bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
            None => f.write_str("unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTE: &[u8] = b"\x04\0\0\0\x03\0\0\0\x03\0\0\0GNU\0\x01\xab\xff\0";

    #[test]
    fn the_id_is_the_notes_description() {
        assert_eq!(BuildId::from_note(NOTE).to_string(), "01abff");
    }

    #[test]
    fn other_notes_give_no_id() {
        for length in 0..NOTE.len() - 1 {
            assert_eq!(
                BuildId::from_note(&NOTE[..length]).to_string(),
                "unknown",
                "{length} bytes"
            );
        }
        for at in 0..16 {
            let mut note = NOTE.to_vec();
            note[at] ^= 0x80;
            assert_eq!(BuildId::from_note(&note).to_string(), "unknown", "byte {at}");
        }
    }
}
