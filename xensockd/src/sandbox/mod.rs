//! What the kernel refuses the daemon once it has started, even if a guest takes it over: files
//! other than its own (Landlock), and system calls that it does not make (seccomp).
//!
//! A system call that is not in the list fails with EPERM and, where the kernel has auditing, is
//! written to the kernel's log. The list is wider than what the daemon calls today, by calls that
//! give nothing but what it has: a library that is updated must not make it fail.
//!
//! Both hold for the threads that are started later, and cannot be undone.

pub mod trial;

use crate::linux::install_filter;
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};
use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// The version of Landlock that this file was written for. Older kernels enforce what they know.
const LANDLOCK: ABI = ABI::V6;

/// Device files that are opened after the start: for each thread, and for mappings.
const DEVICES: [&str; 4] =
    ["/dev/xen/evtchn", "/dev/xen/gntdev", "/dev/xen/xenbus", "/proc/xen/xenbus"];

/// System calls that are allowed with any arguments, so that the kernel decides quickly.
const ALLOWED: &[c_long] = &[
    // Files that are open, and those that Landlock lets it open.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    // To count the daemon's own files, in a folder that it opens before (`metrics`). Landlock
    // refuses to open others.
    libc::SYS_getdents64,
    // Sockets.
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    // Time and random numbers.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_time,
    libc::SYS_getrandom,
    // Memory.
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_membarrier,
    // Threads and signals of this process.
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // What the process is, and what it uses.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrusage,
    libc::SYS_prlimit64,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// Files that the daemon opens or removes later, besides device files.
pub struct Files<'a> {
    /// The file of rules. An editor may replace it by another one of the same folder.
    pub rules: &'a Path,
    /// The control socket, which is removed at the end.
    pub control: &'a Path,
}

/// Confines this thread and those that it starts from now on. A kernel that lacks Landlock or
/// seccomp is no error; a line of the log says so. An error is a line for the user.
pub fn confine(files: &Files<'_>) -> Result<(), String> {
    match restrict_files(files).map_err(|error| format!("cannot set up Landlock: {error}"))? {
        RulesetStatus::NotEnforced => log::warn!(
            "this kernel has no Landlock: any file of the user {} can be opened",
            crate::user::current()
        ),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => {}
    }
    let [threads, calls] = filters().map_err(|error| format!("cannot set up seccomp: {error}"))?;
    let installed = apply_filter(&threads).map_err(io::Error::other);
    if let Err(error) = installed.and_then(|()| install_filter(&calls)) {
        log::warn!("this kernel refuses a seccomp filter: {error}");
    }
    Ok(())
}

fn restrict_files(files: &Files<'_>) -> Result<RulesetStatus, landlock::RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?;
    let read = AccessFs::ReadFile;
    let device = read | AccessFs::WriteFile | AccessFs::IoctlDev;
    for path in DEVICES {
        rules = allow(rules, Path::new(path), device)?;
    }
    // The folder of the name, and the one that a symbolic link leads to.
    let real = files.rules.canonicalize().ok();
    for path in [Some(files.rules), real.as_deref()].into_iter().flatten() {
        rules = allow(rules, folder(path), read.into())?;
    }
    rules = allow(rules, folder(files.control), AccessFs::RemoveFile.into())?;
    Ok(rules.restrict_self()?.ruleset)
}

/// Allows access to a file, or to all below a folder, if it exists.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, landlock::RulesetError> {
    match PathFd::new(path) {
        Ok(file) => rules.add_rule(PathBeneath::new(file, access)),
        Err(_) => Ok(rules),
    }
}

/// The folder of a file.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => path,
    }
}

/// The filters, in the order in which they are installed: the second one refuses to install more.
fn filters() -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let mut allowed: BTreeMap<c_long, Vec<SeccompRule>> =
        ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    let families = families.map(|family| only(SeccompCmpOp::Eq, family as u64));
    allowed.insert(libc::SYS_socket, families.into_iter().collect::<Result<_, _>>()?);
    // A thread, but no process and no namespace.
    let thread = libc::CLONE_THREAD as u64;
    allowed.insert(libc::SYS_clone, vec![only(SeccompCmpOp::MaskedEq(thread), thread)?]);
    allowed.insert(libc::SYS_prctl, vec![only(SeccompCmpOp::Eq, libc::PR_SET_NAME as u64)?]);
    allowed.insert(libc::SYS_clone3, Vec::new());
    let filter = |rules, mismatch, matched| {
        let arch = std::env::consts::ARCH.try_into()?;
        SeccompFilter::new(rules, mismatch, matched, arch)?.try_into()
    };
    // The arguments of `clone3` are in memory, which a filter cannot read. With this error, the C
    // library calls `clone`.
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    Ok([
        filter(clone3, SeccompAction::Allow, absent)?,
        filter(allowed, refuse, SeccompAction::Allow)?,
    ])
}

/// A rule for the first argument of a system call.
fn only(operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, value)?])
}
