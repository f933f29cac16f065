//! The names of the image's functions, which the linker's wrapper (`kernel/symbols-ld`) adds to
//! the image as a file of gzip (RFC 1952). There is no such file without the wrapper.
//!
//! Reading it allocates nothing and skips invalid lines, because something is already wrong then.

use super::backtrace::MOST;
use arrayvec::{ArrayString, ArrayVec};
use core::fmt;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, TINFL_LZ_DICT_SIZE, decompress};

/// The most bytes of a name that are shown. The linker's wrapper limits names to less.
const MAX_NAME: usize = 120;

/// The most bytes of a line that are read.
const MAX_LINE: usize = 160;

/// The start of what `gzip -n` writes: the magic number, deflate, no optional fields.
const MAGIC: [u8; 4] = [0x1f, 0x8b, 8, 0];

/// The rest of the header: time, flags, operating system.
const HEADER_REST: usize = 6;

/// A place in a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The function's name.
    name: ArrayString<MAX_NAME>,
    /// Bytes from its first instruction.
    offset: u64,
}

/// Finds the names of addresses, in memory of its own.
pub struct Names {
    inflate: DecompressorOxide,
    window: [u8; TINFL_LZ_DICT_SIZE],
    places: [Option<Place>; MOST],
}

impl Names {
    /// No names yet.
    pub fn new() -> Names {
        Names {
            inflate: DecompressorOxide::new(),
            window: [0; TINFL_LZ_DICT_SIZE],
            places: [None; MOST],
        }
    }

    /// The functions that contain these addresses, which must be in the code, and of which there
    /// are at most [`MOST`]: the functions that start closest before them. Each line of the
    /// unpacked list has the distance from the function before, a space and a name.
    pub fn find(&mut self, list: &[u8], addresses: &[u64]) -> &[Option<Place>] {
        let places = &mut self.places[..addresses.len().min(MOST)];
        places.fill(None);
        let mut start = 0_u64;
        let mut line = ArrayVec::<u8, MAX_LINE>::new();
        let mut take = |byte: u8| {
            if byte != b'\n' {
                // The rest of a line that is too long is lost.
                let _ = line.try_push(byte);
                return;
            }
            if let Some((distance, name)) = entry(&line) {
                start = start.saturating_add(distance);
                for (place, address) in places.iter_mut().zip(addresses) {
                    if let Some(offset) = address.checked_sub(start) {
                        *place = Some(Place { name, offset });
                    }
                }
            }
            line.clear();
        };
        unpack(&mut self.inflate, &mut self.window, list, |bytes| {
            bytes.iter().copied().for_each(&mut take)
        });
        places
    }
}

/// Unpacks a file of gzip, piece by piece, up to its end or to the first error.
fn unpack(
    inflate: &mut DecompressorOxide,
    window: &mut [u8; TINFL_LZ_DICT_SIZE],
    file: &[u8],
    mut take: impl FnMut(&[u8]),
) {
    let body = file.strip_prefix(&MAGIC).and_then(|rest| rest.get(HEADER_REST..));
    let Some(mut packed) = body else { return };
    inflate.init();
    loop {
        // The window was full or is new: a piece begins at its start.
        let (status, read, written) = decompress(inflate, packed, window, 0, 0);
        take(&window[..written]);
        packed = &packed[read..];
        if status != TINFLStatus::HasMoreOutput {
            return;
        }
    }
}

fn entry(line: &[u8]) -> Option<(u64, ArrayString<MAX_NAME>)> {
    let (distance, name) = core::str::from_utf8(line).ok()?.split_once(' ')?;
    let name = &name[..name.floor_char_boundary(MAX_NAME)];
    Some((distance.parse().ok()?, ArrayString::from(name).ok()?))
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:#x}", self.name, self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use miniz_oxide::deflate::compress_to_vec;

    /// A list as the linker's wrapper packs it, with the byte that the linker script appends.
    fn packed(list: &[u8]) -> Vec<u8> {
        let body = compress_to_vec(list, 9);
        [&MAGIC[..], &[0; HEADER_REST], &body, &[0; 8], b"\n"].concat()
    }

    fn find(list: &[u8], address: u64) -> Option<String> {
        let mut names = Names::new();
        let places = names.find(&packed(list), &[address]);
        places[0].map(|place| place.to_string())
    }

    const LIST: &[u8] = b"1048576 pvh_start\n64 faults::write_to\n176 <T as U>::run\n\n";

    #[test]
    fn an_address_belongs_to_the_function_that_starts_before_it() {
        let addresses = [0x10_0040, 0xf_ffff, 0x10_1000, 0x10_0000, 0x10_003f];
        let mut names = Names::new();
        let packed = packed(LIST);
        for _ in 0..2 {
            let places = names.find(&packed, &addresses);
            let texts: Vec<_> = places.iter().map(|place| place.map(|p| p.to_string())).collect();
            let texts: Vec<_> = texts.iter().map(|text| text.as_deref().unwrap_or("-")).collect();
            let expected = [
                "faults::write_to+0x0",
                "-",
                "<T as U>::run+0xf10",
                "pvh_start+0x0",
                "pvh_start+0x3f",
            ];
            assert_eq!(texts, expected);
        }
    }

    #[test]
    fn a_list_may_be_longer_than_the_window() {
        let lines =
            (0..10_000_u64).map(|n| format!("16 {:x}\n", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let lines: Vec<_> = lines.collect();
        let list = lines.concat();
        assert!(list.len() > 4 * TINFL_LZ_DICT_SIZE);
        for n in [0, 4321, 9999] {
            let name = lines[n].trim_end().trim_start_matches("16 ");
            let found = find(list.as_bytes(), 16 + 16 * n as u64 + 5);
            assert_eq!(found.unwrap(), format!("{name}+0x5"));
        }
    }

    #[test]
    fn an_empty_list_names_nothing() {
        for list in [&b""[..], b"\n", &MAGIC, &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(Names::new().find(list, &[0x10_0000]), [None]);
        }
        assert_eq!(find(b"", 0x10_0000), None);
        assert_eq!(find(b"\n", 0x10_0000), None);
    }

    #[test]
    fn invalid_lines_are_skipped() {
        let list = b"x y\n16 good\n\xff\xfe z\n17\n-12 no\n 13 space\n99999999999999999999 big\n";
        assert_eq!(find(list, 0x20).unwrap(), "good+0x10");
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let line = format!("16 a{}\n", "é".repeat(62));
        assert_eq!(find(line.as_bytes(), 16).unwrap(), format!("a{}+0x0", "é".repeat(59)));
    }

    #[test]
    fn no_wrong_byte_makes_it_panic_or_loop() {
        let packed = packed(LIST);
        let mut names = Names::new();
        for at in 0..packed.len() {
            for byte in 0..=u8::MAX {
                let mut list = packed.clone();
                list[at] = byte;
                names.find(&list, &[0, 0x10_0000, 0x10_0050, u64::MAX]);
            }
            names.find(&packed[..at], &[0x10_0050]);
        }
    }
}
