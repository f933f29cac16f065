//! The cache folder: files that are downloaded or built once and kept.

use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::Path;

/// Locks the cache until the value is dropped. Of two labs that start at once, one builds while the
/// other one waits.
pub fn lock(cache: &Path) -> Result<File> {
    fs::create_dir_all(cache)
        .with_context(|| format!("cannot create the folder {}", cache.display()))?;
    let lock = File::create(cache.join("lock"))?;
    lock.lock()?;
    Ok(lock)
}

/// Runs `build` unless the file `stamp` contains `key`, which lists all inputs of the build. Writes
/// the stamp after success.
pub fn up_to_date(stamp: &Path, key: &str, build: impl FnOnce() -> Result<()>) -> Result<()> {
    if fs::read_to_string(stamp).is_ok_and(|built| built == key) {
        return Ok(());
    }
    remove_if_present(stamp)?;
    build()?;
    Ok(fs::write(stamp, key)?)
}

/// Removes a file if it exists.
pub fn remove_if_present(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Makes `path` an empty folder.
pub fn empty_folder(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir_all(path)?;
    }
    Ok(fs::create_dir_all(path)?)
}

/// The contents of a folder's files, to become part of a key.
pub fn contents<'a>(folder: &Path, names: impl IntoIterator<Item = &'a str>) -> Result<String> {
    let mut contents = String::new();
    for name in names {
        let path = folder.join(name);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        contents += &format!("{name}:\n{text}\n");
    }
    Ok(contents)
}
