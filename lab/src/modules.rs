//! Linux modules for dom0 and for Linux guests: finds, decompresses and sorts them by dependency.

use crate::archive::{Archive, READABLE};
use crate::packages::Packages;
use crate::process;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Adds the named modules and those that they depend on to the archive's `folder`, and the file
/// `order`, which lists them in loading order.
pub fn add<'a, W: Write>(
    archive: &mut Archive<W>,
    folder: &str,
    packages: &Packages,
    names: impl IntoIterator<Item = &'a str>,
) -> Result<()> {
    let mut order = String::new();
    for module in resolve(&packages.path("/lib/modules"), names)? {
        let file = format!("{}.ko", module.name);
        archive.file(&format!("{folder}/{file}"), READABLE, &module.content)?;
        order += &format!("{file}\n");
    }
    archive.file(&format!("{folder}/order"), READABLE, order.as_bytes())
}

/// A module, ready for `insmod`.
struct Module {
    /// Its name, with the kernel's underscores.
    name: String,
    /// The ELF file.
    content: Vec<u8>,
}

/// The named modules and their dependencies, in loading order.
fn resolve<'a>(folder: &Path, names: impl IntoIterator<Item = &'a str>) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    index(folder, &mut files)?;
    let mut loader = Loader { files, seen: BTreeSet::new(), order: Vec::new() };
    for name in names {
        loader.load(&name.replace('-', "_"))?;
    }
    Ok(loader.order)
}

struct Loader {
    files: BTreeMap<String, PathBuf>,
    seen: BTreeSet<String>,
    order: Vec<Module>,
}

impl Loader {
    fn load(&mut self, name: &str) -> Result<()> {
        if !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let file = self.files.get(name).with_context(|| format!("no module {name}"))?;
        let content = process::output(Command::new("xz").arg("-dc").arg(file))?.stdout;
        for needed in depends(&content) {
            self.load(&needed)?;
        }
        self.order.push(Module { name: name.to_owned(), content });
        Ok(())
    }
}

fn index(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            index(&entry.path(), files)?;
        } else if let Some(name) = entry.file_name().to_string_lossy().strip_suffix(".ko.xz") {
            files.insert(name.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

/// The dependencies in a module's `.modinfo` section.
fn depends(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(start) = module.windows(key.len()).position(|window| window == key) else {
        return Vec::new();
    };
    let value = module[start + key.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        assert_eq!(
            depends(b"ELF\0license=GPL\0depends=mii,xen-privcmd\0x"),
            ["mii", "xen_privcmd"]
        );
        assert!(depends(b"ELF\0depends=\0name=x\0").is_empty());
        assert!(depends(b"ELF").is_empty());
    }
}
