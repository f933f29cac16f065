//! Options of the commands that boot a machine.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use lab::{Accel, Options, Tree};
use std::path::{Path, PathBuf};

/// How to boot a machine.
#[derive(Args)]
pub struct Boot {
    /// Processors
    #[arg(long, default_value_t = 2)]
    pub smp: u32,
    /// Memory of the whole machine in MiB; dom0 takes 1024 of it
    #[arg(long, default_value_t = 2048)]
    pub memory: u32,
    /// What executes the machine's instructions
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    pub accel: Engine,
    /// Serves gdb on this loopback port
    #[arg(long, value_name = "PORT")]
    pub gdb: Option<u16>,
    /// The guest's kernel, /root/xensock-kernel in dom0 [default: target/xensock-kernel if there]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// The backend daemon for dom0 [default: target/xensockd if there]
    #[arg(long, value_name = "FILE")]
    pub xensockd: Option<PathBuf>,
}

/// The choices of `--accel`.
#[derive(Clone, Copy, ValueEnum)]
pub enum Engine {
    /// KVM where it can nest, emulation elsewhere
    Auto,
    /// Nested hardware virtualization
    Kvm,
    /// Emulation
    Tcg,
}

impl Boot {
    /// These options for a machine in `folder`, with what was built for dom0.
    pub fn options(&self, tree: &Tree, folder: &Path) -> Result<Options> {
        let mut options = Options::new(folder);
        options.smp = self.smp;
        options.memory = self.memory;
        options.accel = match self.accel {
            Engine::Auto => Accel::Auto,
            Engine::Kvm => Accel::Kvm,
            Engine::Tcg => Accel::Tcg,
        };
        options.gdb = self.gdb;
        if let Some(port) = self.gdb {
            lab::check_port(port)?;
        }
        options.add_built(tree)?;
        if let Some(kernel) = &self.kernel {
            options.add_kernel(existing(kernel)?);
        }
        if let Some(xensockd) = &self.xensockd {
            options.xensockd = Some(existing(xensockd)?);
        }
        Ok(options)
    }

    /// The same options as words of a command line.
    pub fn words(&self) -> Vec<std::ffi::OsString> {
        let mut words =
            vec![format!("--smp={}", self.smp).into(), format!("--memory={}", self.memory).into()];
        if let Some(engine) = self.accel.to_possible_value() {
            words.push(format!("--accel={}", engine.get_name()).into());
        }
        if let Some(port) = self.gdb {
            words.push(format!("--gdb={port}").into());
        }
        for (option, file) in [("--kernel", &self.kernel), ("--xensockd", &self.xensockd)] {
            if let Some(file) = file {
                words.extend([option.into(), file.into()]);
            }
        }
        words
    }
}

/// Tells the user what goes on.
pub fn say(text: &str) {
    println!("lab: {text}");
}

/// A file that the user named, as long as it is there.
fn existing(file: &Path) -> Result<PathBuf> {
    if !file.is_file() {
        bail!("there is no file {}", file.display());
    }
    Ok(file.to_path_buf())
}
