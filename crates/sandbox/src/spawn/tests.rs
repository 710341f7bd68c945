//! Children of this test: `/bin/sh` tells what it was given.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::*;

fn shell(script: &str, fds: Vec<(OwnedFd, i32)>) -> Spec {
    Spec {
        program: Program::Path("/bin/sh".into()),
        name: "guan: test".to_owned(),
        args: vec!["-c".into(), script.into()],
        env: vec![("ONLY".into(), "this".into())],
        fds,
        stdout: Stream::Null,
        stderr: Stream::Inherit,
        die_with_parent: true,
        new_session: false,
    }
}

fn ask(script: &str) -> String {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut child = spawn(&shell(script, vec![(theirs.into(), 5)])).unwrap();
    let mut ours = ours;
    ours.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut said = String::new();
    ours.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap(), Exit::Code(0));
    said
}

#[test]
fn a_child_gets_its_descriptors_and_no_others() {
    let leak = std::fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    // `exec` so that the shell itself lists: the listing's own descriptor is the one more number.
    let said = ask("exec /bin/ls /proc/self/fd >&5 5>&5");
    let numbers: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(numbers, ["0", "1", "2", "3", "5"]);
}

#[test]
fn a_child_gets_its_environment_and_no_other() {
    let said = ask("exec /usr/bin/env >&5");
    let names: Vec<&str> = said.lines().filter_map(|l| l.split('=').next()).collect();
    assert!(names.contains(&"ONLY"), "{said}");
    assert!(!names.contains(&"CARGO_MANIFEST_DIR"), "{said}");
}

#[test]
fn descriptors_may_swap_numbers() {
    let (mut a, a_theirs) = UnixStream::pair().unwrap();
    let (mut b, b_theirs) = UnixStream::pair().unwrap();
    let (a_theirs, b_theirs) = (OwnedFd::from(a_theirs), OwnedFd::from(b_theirs));
    let (low, high) = (a_theirs.as_raw_fd(), b_theirs.as_raw_fd());
    let script = format!("printf a >&{high}; printf b >&{low}");
    let mut child = spawn(&shell(&script, vec![(a_theirs, high), (b_theirs, low)])).unwrap();
    assert_eq!(child.wait().unwrap(), Exit::Code(0));
    let mut letter = [0];
    a.read_exact(&mut letter).unwrap();
    assert_eq!(&letter, b"a");
    b.read_exact(&mut letter).unwrap();
    assert_eq!(&letter, b"b");
}

#[test]
fn a_missing_program_is_an_error_even_with_many_descriptors() {
    let fds = (3..20)
        .map(|n| (OwnedFd::from(std::fs::File::open("/dev/null").unwrap()), n))
        .collect();
    let mut spec = shell("", fds);
    spec.program = Program::Path("/nowhere/guan-engine".into());
    assert_eq!(spawn(&spec).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_kill_shows_as_a_signal_and_wakes_poll() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut child = spawn(&shell("read line <&5", vec![(theirs.into(), 5)])).unwrap();
    assert_eq!(child.try_wait().unwrap(), None);
    child.kill(Signal::KILL).unwrap();
    let mut polled = [rustix::event::PollFd::new(
        &child,
        rustix::event::PollFlags::IN,
    )];
    let limit = rustix::event::Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };
    assert_eq!(rustix::event::poll(&mut polled, Some(&limit)).unwrap(), 1);
    assert_eq!(child.wait().unwrap(), Exit::Signal(9));
    child.kill(Signal::TERM).unwrap();
    drop(ours);
}

#[test]
fn standard_numbers_are_refused() {
    let fd = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let spec = shell("", vec![(fd, 2)]);
    assert_eq!(
        spawn(&spec).unwrap_err().kind(),
        io::ErrorKind::InvalidInput
    );
}
