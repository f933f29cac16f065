//! Paths in the source tree and in the build folder.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A checkout of the project.
#[derive(Clone, Debug)]
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// The checkout that this program was built from.
    pub fn here() -> Self {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        Self { root: manifest.parent().unwrap_or(manifest).to_path_buf() }
    }

    /// The root folder of the checkout.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The build folder, which also has the lab's files.
    pub fn target(&self) -> PathBuf {
        self.root.join("target")
    }

    /// dom0's packages and image, kept between runs.
    pub fn cache(&self) -> PathBuf {
        self.target().join("lab-cache")
    }

    /// The folder of the machine that `lab up` starts.
    pub fn state(&self) -> PathBuf {
        self.target().join("lab-state")
    }

    /// The guest's kernel, as `make kernel` leaves it.
    pub fn kernel(&self) -> PathBuf {
        self.target().join("xensock-kernel")
    }

    /// The backend daemon's package, as `make deb` leaves it.
    pub fn package(&self) -> PathBuf {
        let name = concat!("xensockd_", env!("CARGO_PKG_VERSION"), "-1_amd64.deb");
        self.target().join("debian").join(name)
    }

    /// The lab's command, as `make lab` leaves it.
    pub fn lab(&self) -> PathBuf {
        self.target().join("lab")
    }

    /// This project's files for Linux's ends of PV Calls.
    pub fn linux(&self) -> PathBuf {
        self.root.join("lab/linux")
    }

    /// The example guests: their names and xl configurations.
    pub fn guests(&self) -> Result<BTreeMap<String, PathBuf>> {
        let folder = self.root.join("xensockd/dist");
        let entries =
            fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let mut guests = BTreeMap::new();
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "cfg")
                && let Some(name) = path.file_stem()
            {
                guests.insert(name.to_string_lossy().into_owned(), path);
            }
        }
        Ok(guests)
    }

    /// The script that installs what the project needs from Debian.
    pub fn setup(&self) -> PathBuf {
        self.root.join(".ci/setup")
    }
}
