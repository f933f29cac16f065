//! The names of the image's functions, which the linker's wrapper (`kernel/symbols-ld`) adds to
//! the image. The list is empty without the wrapper.
//!
//! Reading it allocates nothing and skips invalid lines, because something is already wrong then.

use core::fmt;

/// The most bytes of a name that are shown. The linker's wrapper limits names to less.
const MAX_NAME: usize = 120;

/// A list of functions. Each line has an address in hexadecimal, a space and a name.
#[derive(Clone, Copy, Debug)]
pub struct Symbols<'a>(pub &'a [u8]);

/// A place in a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The function's name.
    pub name: &'a str,
    /// Bytes from its first instruction.
    pub offset: u64,
}

impl<'a> Symbols<'a> {
    /// The function that contains `address`, which must be in the code: the function that starts
    /// closest before it.
    pub fn find(self, address: u64) -> Option<Place<'a>> {
        let lines = self.0.split(|byte| *byte == b'\n');
        let (start, name) = lines
            .filter_map(entry)
            .filter(|(start, _)| *start <= address)
            .max_by_key(|(start, _)| *start)?;
        Some(Place { name: &name[..name.floor_char_boundary(MAX_NAME)], offset: address - start })
    }
}

fn entry(line: &[u8]) -> Option<(u64, &str)> {
    let (address, name) = core::str::from_utf8(line).ok()?.split_once(' ')?;
    Some((u64::from_str_radix(address, 16).ok()?, name))
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:#x}", self.name, self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: Symbols =
        Symbols(b"100000 pvh_start\n100040 faults::write_to\n1000f0 <T as U>::run\n\n");

    #[test]
    fn an_address_belongs_to_the_function_that_starts_before_it() {
        for (address, name) in [
            (0x10_0000, "pvh_start+0x0"),
            (0x10_003f, "pvh_start+0x3f"),
            (0x10_0040, "faults::write_to+0x0"),
            (0x10_1000, "<T as U>::run+0xf10"),
        ] {
            assert_eq!(LIST.find(address).unwrap().to_string(), name);
        }
        assert_eq!(LIST.find(0xf_ffff), None);
    }

    #[test]
    fn an_empty_list_names_nothing() {
        assert_eq!(Symbols(b"").find(0x10_0000), None);
        assert_eq!(Symbols(b"\n").find(0x10_0000), None);
    }

    #[test]
    fn invalid_lines_are_skipped() {
        let list = Symbols(
            b"x y\n10 good\n\xff\xfe z\n11\n-12 no\n1ffffffffffffffff big\n 13 space\n0x14 no",
        );
        assert_eq!(list.find(0x20), Some(Place { name: "good", offset: 0x10 }));
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let line = format!("10 a{}", "é".repeat(1000));
        let name = Symbols(line.as_bytes()).find(0x10).unwrap().name;
        assert_eq!(name, format!("a{}", "é".repeat(59)));
    }

    #[test]
    fn no_wrong_byte_makes_it_panic() {
        for at in 0..LIST.0.len() {
            for byte in 0..=u8::MAX {
                let mut list = LIST.0.to_vec();
                list[at] = byte;
                for address in [0, 0x10_0000, 0x10_0050, u64::MAX] {
                    if let Some(place) = Symbols(&list).find(address) {
                        assert!(place.offset <= address);
                    }
                }
            }
        }
    }
}
