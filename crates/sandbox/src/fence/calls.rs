//! The system call filter of the engine and of `guan-pkcs11`: which calls answer `EPERM`.
//!
//! A deny list for now: it takes sockets, programs, processes, tracing and name spaces away. Called by `enter`.

use std::collections::BTreeMap;
use std::io;

use super::Profile;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Installs both filters on this, the only thread; threads started later inherit them.
pub(super) fn filter(profile: Profile) -> io::Result<()> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    // Two filters: each has one answer, and glibc falls back from `clone3` only on ENOSYS.
    let mut denied: BTreeMap<i64, Vec<SeccompRule>> =
        DENIED.iter().map(|call| (*call, Vec::new())).collect();
    let sockets: &[i64] = match profile {
        Profile::Token { .. } => &LISTENING,
        Profile::Supervisor | Profile::Gateway | Profile::Engine => &SOCKETS,
    };
    denied.extend(sockets.iter().map(|call| (*call, Vec::new())));
    if profile == (Profile::Token { network: false }) {
        denied.insert(libc::SYS_socket, vec![not_a_unix_socket()?]);
    }
    #[cfg(target_arch = "x86_64")]
    denied.extend(OLD_X86.iter().map(|call| (*call, Vec::new())));
    denied.insert(libc::SYS_clone, vec![not_a_thread()?]);
    #[cfg(target_arch = "x86_64")]
    deny_x32(&mut denied);
    let absent = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let programs = [
        program(absent, libc::ENOSYS, arch)?,
        program(denied, libc::EPERM, arch)?,
    ];
    for program in programs {
        seccompiler::apply_filter(&program).map_err(io::Error::other)?;
    }
    Ok(())
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    errno: i32,
    arch: TargetArch,
) -> io::Result<BpfProgram> {
    SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno.unsigned_abs()),
        arch,
    )
    .and_then(BpfProgram::try_from)
    .map_err(io::Error::other)
}

/// Matches a `clone` that would make a process instead of a thread.
fn not_a_thread() -> io::Result<SeccompRule> {
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    SeccompCondition::new(
        0,
        SeccompCmpArgLen::Qword,
        SeccompCmpOp::MaskedEq(thread),
        0,
    )
    .and_then(|condition| SeccompRule::new(vec![condition]))
    .map_err(io::Error::other)
}

/// Matches a `socket` of any family but the machine's own: modules speak to their daemons (`pcscd`) over one.
fn not_a_unix_socket() -> io::Result<SeccompRule> {
    let unix = u64::from(libc::AF_UNIX.unsigned_abs());
    SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, unix)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(io::Error::other)
}

/// The x32 numbers of the same calls carry a bit more and would pass by; a few have numbers of their own.
#[cfg(target_arch = "x86_64")]
fn deny_x32(denied: &mut BTreeMap<i64, Vec<SeccompRule>>) {
    const X32: i64 = 0x4000_0000;
    // execve, ptrace, process_vm_readv, process_vm_writev, execveat
    const OWN: [i64; 5] = [520, 521, 539, 540, 545];
    let same: Vec<(i64, Vec<SeccompRule>)> = denied
        .iter()
        .map(|(call, rules)| (call | X32, rules.clone()))
        .collect();
    denied.extend(same);
    denied.extend(OWN.iter().map(|call| (call | X32, Vec::new())));
}

/// An engine has the socket that it was given.
const SOCKETS: [i64; 5] = [
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
];

/// Nobody but its parent gives a token's program a listener.
const LISTENING: [i64; 2] = [libc::SYS_bind, libc::SYS_listen];

const DENIED: [i64; 37] = [
    // programs
    libc::SYS_execve,
    libc::SYS_execveat,
    // other processes
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // name spaces and mounts
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fsconfig,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    // wide ways into the kernel
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_acct,
];

/// Calls that only the older table has.
#[cfg(target_arch = "x86_64")]
const OLD_X86: [i64; 2] = [libc::SYS_fork, libc::SYS_vfork];
