//! The user as which the daemon runs.
//!
//! The daemon needs no more than its device files, xenstored's socket and ports below 1024. The
//! package makes the first two belong to a user of its own, and the third is a capability.

use nix::unistd::{Uid, User, geteuid, initgroups, setresgid, setresuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_keep_capabilities,
    set_no_new_privs,
};
use std::ffi::CString;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::Path;

/// The user, unless the command line names another one.
pub const DEFAULT: &str = "xensockd";

/// The capability that is kept.
const KEPT: CapabilitySet = CapabilitySet::NET_BIND_SERVICE;

/// Gives up what the daemon does not need. If this process is root's, it becomes the process of the
/// user `name`, or of [`DEFAULT`], and the folders that are still missing are made for that user;
/// only as root it keeps its capabilities. The process must not have other threads yet. An error is
/// a line for the user.
pub fn become_user(name: Option<&str>, folders: &[&Path]) -> Result<(), String> {
    let user = find(name)?;
    if geteuid().is_root() {
        for folder in folders {
            make(folder, &user)
                .map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
        }
        switch(&user).map_err(|error| format!("cannot become {}: {error}", user.name))?;
    }
    reduce(user.uid).map_err(|error| format!("cannot give up capabilities: {error}"))
}

/// The user of this name, which only root can choose.
fn find(name: Option<&str>) -> Result<User, String> {
    let own = geteuid();
    let failed = |error| format!("cannot look for users: {error}");
    let user = match name {
        None if !own.is_root() => User::from_uid(own),
        _ => User::from_name(name.unwrap_or(DEFAULT)),
    };
    let Some(user) = user.map_err(failed)? else {
        let name = name.unwrap_or(DEFAULT);
        return match own.is_root() {
            true => Err(format!(
                "there is no user {name}: make it by `adduser --system --group {name}`, or start \
                 xensockd with --user root"
            )),
            false => Err(format!("there is no user {name}")),
        };
    };
    if user.uid != own && !own.is_root() {
        return Err(format!("only root can start xensockd as the user {}", user.name));
    }
    Ok(user)
}

/// Makes a folder for a user, if it is missing.
fn make(folder: &Path, user: &User) -> io::Result<()> {
    match DirBuilder::new().mode(0o750).create(folder) {
        Ok(()) => chown(folder, Some(user.uid.as_raw()), Some(user.gid.as_raw())),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn switch(user: &User) -> io::Result<()> {
    let name = CString::new(user.name.as_str())?;
    set_keep_capabilities(true)?;
    initgroups(&name, user.gid)?;
    setresgid(user.gid, user.gid, user.gid)?;
    setresuid(user.uid, user.uid, user.uid)?;
    Ok(())
}

/// Gives up all capabilities but one, and what programs with more rights would add.
fn reduce(user: Uid) -> io::Result<()> {
    let permitted = capabilities(None)?.permitted;
    let kept = permitted & KEPT;
    // systemd has done so already, and does not allow the call.
    if !user.is_root() && permitted != kept {
        let inheritable = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable })?;
    }
    Ok(set_no_new_privs(true)?)
}

/// The user as which this process runs, for the log.
pub fn current() -> String {
    let uid = Uid::effective();
    User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_user_is_an_error_with_the_remedy() {
        let error = find(Some("nobody-has-this-name")).unwrap_err();
        assert!(error.contains("there is no user nobody-has-this-name"), "{error}");
        assert!(!geteuid().is_root() || error.contains("adduser --system"), "{error}");
        assert_eq!(find(Some(&current())).unwrap().uid, geteuid());
    }
}
