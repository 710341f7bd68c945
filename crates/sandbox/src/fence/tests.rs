//! The fence holds against real calls: each test forks, so that the child has one thread, and looks from inside.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use super::*;

/// Runs `work` in a forked child of this process, which then has one thread; whether it went well.
fn inside(work: impl FnOnce() + std::panic::UnwindSafe) -> impl FnOnce() -> bool {
    // SAFETY: glibc keeps its allocator usable in the child of a process with threads; the child runs `work`
    // and leaves by `_exit`, so no destructor and no harness code of the parent runs twice.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let code = i32::from(std::panic::catch_unwind(work).is_err());
        // SAFETY: ends this child at once.
        unsafe { libc::_exit(code) };
    }
    move || {
        let mut status = 0;
        // SAFETY: waits for the child made above and writes its status to a live integer.
        let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        waited == pid && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
    }
}

/// What the kernel answers to a call that must fail.
fn errno(number: libc::c_long, arguments: [libc::c_long; 3]) -> i32 {
    let [a, b, c] = arguments;
    // SAFETY: numbers and null pointers only; every call tried here is refused before it reads any of them.
    let result = unsafe { libc::syscall(number, a, b, c, 0, 0, 0) };
    assert!(result < 0, "call {number} went through");
    io::Error::last_os_error().raw_os_error().unwrap()
}

#[test]
fn an_engine_can_open_no_socket_and_start_nothing() {
    let well = inside(|| {
        let report = enter(Profile::Engine).unwrap();
        assert!(report.to_string().contains("no socket"), "{report}");
        let (inet, unix) = (libc::AF_INET.into(), libc::AF_UNIX.into());
        let tried = [
            (libc::SYS_socket, [inet, 1, 0]),
            (libc::SYS_socket, [unix, 1, 0]),
            (libc::SYS_socketpair, [unix, 1, 0]),
            (libc::SYS_connect, [3, 0, 0]),
            (libc::SYS_bind, [3, 0, 0]),
            (libc::SYS_listen, [3, 1, 0]),
            (libc::SYS_execve, [0, 0, 0]),
            (libc::SYS_execveat, [-1, 0, 0]),
            (libc::SYS_ptrace, [0, 0, 0]),
            (libc::SYS_process_vm_readv, [1, 0, 0]),
            (libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0]),
            (libc::SYS_unshare, [libc::CLONE_NEWUSER.into(), 0, 0]),
            (libc::SYS_setns, [-1, 0, 0]),
            (libc::SYS_mount, [0, 0, 0]),
            (libc::SYS_bpf, [0, 0, 0]),
            (libc::SYS_io_uring_setup, [1, 0, 0]),
            (libc::SYS_userfaultfd, [0, 0, 0]),
            (libc::SYS_keyctl, [0, 0, 0]),
            #[cfg(target_arch = "x86_64")]
            (libc::SYS_fork, [0, 0, 0]),
            // The x32 numbers of `socket` and `execve`.
            #[cfg(target_arch = "x86_64")]
            (0x4000_0000 | libc::SYS_socket, [inet, 1, 0]),
            #[cfg(target_arch = "x86_64")]
            (0x4000_0000 | 520, [0, 0, 0]),
        ];
        for (number, arguments) in tried {
            assert_eq!(errno(number, arguments), libc::EPERM, "call {number}");
        }
        assert_eq!(errno(libc::SYS_clone3, [0, 0, 0]), libc::ENOSYS);
        assert!(UnixListener::bind("/tmp/guan-never.sock").is_err());
        assert_eq!(
            std::thread::spawn(|| 42).join().unwrap(),
            42,
            "threads still start"
        );
    });
    assert!(well());
}

#[test]
fn a_tokens_program_reaches_unix_sockets_only_and_starts_nothing() {
    for network in [false, true] {
        let well = inside(move || {
            let report = enter(Profile::Token { network }).unwrap();
            assert!(report.to_string().contains("no listener"), "{report}");
            let (inet, netlink) = (libc::AF_INET.into(), libc::AF_NETLINK.into());
            let mut tried = vec![
                (libc::SYS_bind, [3, 0, 0]),
                (libc::SYS_listen, [3, 1, 0]),
                (libc::SYS_execve, [0, 0, 0]),
                (libc::SYS_ptrace, [0, 0, 0]),
                (libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0]),
                (libc::SYS_io_uring_setup, [1, 0, 0]),
            ];
            if !network {
                tried.push((libc::SYS_socket, [inet, 1, 0]));
                tried.push((libc::SYS_socket, [netlink, 3, 0]));
            }
            for (number, arguments) in tried {
                assert_eq!(errno(number, arguments), libc::EPERM, "call {number}");
            }
            let (one, _other) = UnixStream::pair().unwrap();
            drop(one);
            assert!(
                UnixStream::connect("/nowhere/guan.sock")
                    .is_err_and(|e| { e.kind() == io::ErrorKind::NotFound })
            );
            let address = "127.0.0.1:1".parse::<std::net::SocketAddr>().unwrap();
            let went = std::net::TcpStream::connect(address).unwrap_err();
            assert_eq!(went.kind() == io::ErrorKind::PermissionDenied, !network);
        });
        assert!(well(), "network: {network}");
    }
}

#[test]
fn an_engine_still_answers_on_the_socket_it_was_given() {
    let path: PathBuf =
        std::env::temp_dir().join(format!("guan-fence-{}.sock", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    let well = inside(move || {
        // As after exec: the number is open and carries no close-on-exec flag.
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
        let number = listener.as_raw_fd();
        let taken = UnixListener::from(crate::inherited_fd(number).unwrap());
        let flags = rustix::io::fcntl_getfd(&taken).unwrap();
        assert_eq!(flags, rustix::io::FdFlags::CLOEXEC);
        assert!(
            crate::inherited_fd(number).is_err(),
            "a number is taken once"
        );
        enter(Profile::Engine).unwrap();
        let (mut caller, _) = taken.accept().unwrap();
        let mut word = [0; 4];
        caller.read_exact(&mut word).unwrap();
        caller.write_all(&word).unwrap();
    });
    let mut caller = UnixStream::connect(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    caller.write_all(b"ping").unwrap();
    let mut word = [0; 4];
    caller.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"ping");
    assert!(well());
}

#[test]
fn the_fence_is_refused_once_a_thread_runs() {
    let well = inside(|| {
        let (tell, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || assert!(wait.recv().is_err()));
        assert!(matches!(enter(Profile::Gateway), Err(Fault::Threads(2))));
        drop(tell);
        thread.join().unwrap();
        // The kernel may list the thread for a moment after it was joined.
        while let Err(Fault::Threads(_)) = enter(Profile::Gateway) {
            std::thread::yield_now();
        }
        assert!(rustix::thread::no_new_privs().unwrap());
        let limit = rustix::process::getrlimit(Resource::Core);
        assert_eq!((limit.current, limit.maximum), (Some(0), Some(0)));
    });
    assert!(well());
}
