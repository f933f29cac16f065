//! Reads a log file line by line while another process writes it.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

/// A reader of a growing file.
pub struct Tail {
    path: PathBuf,
    file: Option<File>,
    partial: Vec<u8>,
}

impl Tail {
    /// Starts at the beginning of a file that need not exist yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None, partial: Vec::new() }
    }

    /// The lines completed since the last call.
    pub fn lines(&mut self) -> std::io::Result<Vec<String>> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        if let Some(file) = &mut self.file {
            file.read_to_end(&mut self.partial)?;
        }
        let end = self.partial.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        let complete: Vec<u8> = self.partial.drain(..end).collect();
        Ok(String::from_utf8_lossy(&complete).lines().map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn an_incomplete_line_is_returned_once_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut tail = Tail::new(path.clone());
        assert!(tail.lines().unwrap().is_empty());
        let mut file = File::create(path).unwrap();
        file.write_all(b"one\ntw").unwrap();
        assert_eq!(tail.lines().unwrap(), ["one"]);
        file.write_all(b"o\r\n").unwrap();
        assert_eq!(tail.lines().unwrap(), ["two"]);
        assert!(tail.lines().unwrap().is_empty());
    }
}
