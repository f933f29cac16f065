//! The options of the command line that the kernel reads itself: `log=` and `evtchn=`.

/// The value of the first option `key=VALUE`. The line ends at its first NUL byte. The kernel
/// ignores invalid values; an image that checks the whole line reports them.
pub fn value<'l>(line: &'l [u8], key: &str) -> Option<&'l str> {
    let line = line.split(|byte| *byte == 0).next()?;
    let words = line.split(u8::is_ascii_whitespace);
    let mut values = words.filter_map(|word| word.strip_prefix(key.as_bytes())?.strip_prefix(b"="));
    core::str::from_utf8(values.next()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_with_the_key_counts() {
        for (line, abi) in [
            ("", None),
            ("evtchn=fifo", Some("fifo")),
            ("app=echo\tevtchn=2l evtchn=fifo", Some("2l")),
            ("app=echo\0evtchn=2l", None),
            ("evtchn", None),
        ] {
            assert_eq!(value(line.as_bytes(), "evtchn"), abi, "{line}");
        }
        assert_eq!(value(b"evtchn=\xff", "evtchn"), None);
    }

    #[cfg(feature = "apps")]
    #[test]
    fn the_kernel_and_the_image_read_the_same_abi() {
        use xen::event::Abi;
        let abi = |line: &[u8]| value(line, "evtchn").and_then(|abi| abi.parse::<Abi>().ok());
        for line in ["", "evtchn=fifo", "app=echo\tevtchn=2l", "app=echo\0evtchn=2l"] {
            let config = apps::config::Config::parse(line.as_bytes()).unwrap();
            assert_eq!(abi(line.as_bytes()), config.evtchn, "{line}");
        }
        assert_eq!(abi(b"evtchn=3l log=debug"), None);
    }
}
