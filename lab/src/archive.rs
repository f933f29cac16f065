//! Initramfs archives (cpio, "newc" format), every file owned by root.
//!
//! The kernel unpacks concatenated archives in order; later files replace earlier ones. Archives
//! are not compressed: unpacking in emulation costs more than copying.

use anyhow::{Context, Result};
use cpio::newc::{Builder, ModeFileType, trailer};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

/// Permissions of a program.
pub const EXECUTABLE: u32 = 0o755;
/// Permissions of a file for everyone to read.
pub const READABLE: u32 = 0o644;
/// Permissions of a file that only root may read.
pub const PRIVATE: u32 = 0o600;

/// An archive being written.
pub struct Archive<W: Write> {
    writer: W,
    folders: BTreeSet<String>,
    inode: u32,
}

impl<W: Write> Archive<W> {
    /// An empty archive.
    pub fn new(writer: W) -> Self {
        Self { writer, folders: BTreeSet::new(), inode: 0 }
    }

    /// Adds a file. `path` is absolute, as in dom0; missing parent folders are added.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> Result<()> {
        self.parents(path)?;
        self.entry(path, ModeFileType::Regular, permissions, content)
    }

    /// Adds a copy of the host's file `from`.
    pub fn copy(&mut self, from: &Path, path: &str, permissions: u32) -> Result<()> {
        let content =
            std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.file(path, permissions, &content)
    }

    /// Adds a symbolic link at `path` to `to`.
    pub fn link(&mut self, path: &str, to: &str) -> Result<()> {
        self.parents(path)?;
        self.entry(path, ModeFileType::Symlink, 0o777, to.as_bytes())
    }

    /// Adds a folder and its parents.
    pub fn folder(&mut self, path: &str) -> Result<()> {
        self.parents(path)?;
        if self.folders.insert(path.to_owned()) {
            self.entry(path, ModeFileType::Directory, EXECUTABLE, &[])?;
        }
        Ok(())
    }

    /// Ends the archive, padded so that another may follow it.
    pub fn finish(self) -> Result<W> {
        Ok(trailer(self.writer)?)
    }

    fn parents(&mut self, path: &str) -> Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) if !parent.is_empty() => self.folder(parent),
            _ => Ok(()),
        }
    }

    fn entry(
        &mut self,
        path: &str,
        kind: ModeFileType,
        permissions: u32,
        content: &[u8],
    ) -> Result<()> {
        self.inode += 1;
        let size = u32::try_from(content.len())
            .with_context(|| format!("{path} is too large for an initramfs"))?;
        let mut file = Builder::new(path.trim_start_matches('/'))
            .ino(self.inode)
            .nlink(1)
            .mode(permissions)
            .set_mode_file_type(kind)
            .write(&mut self.writer, size);
        file.write_all(content)?;
        file.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpio::newc::Reader;

    #[test]
    fn a_file_adds_each_parent_folder_once() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/a/b/c", READABLE, b"text").unwrap();
        archive.link("/a/b/d", "c").unwrap();
        let bytes = archive.finish().unwrap();
        let mut rest = &bytes[..];
        let mut names = Vec::new();
        loop {
            let reader = Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            names.push((reader.entry().name().to_owned(), reader.entry().mode()));
            rest = reader.finish().unwrap();
        }
        let expected =
            [("a", 0o040_755), ("a/b", 0o040_755), ("a/b/c", 0o100_644), ("a/b/d", 0o120_777)];
        assert_eq!(names, expected.map(|(name, mode)| (name.to_owned(), mode)));
    }

    #[test]
    fn an_archive_is_padded_so_that_another_one_can_follow() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/odd", READABLE, b"x").unwrap();
        assert_eq!(archive.finish().unwrap().len() % 4, 0);
    }
}
