//! The audit log against real files: chains, torn ends, full disks, and what is found again after a restart.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rules::chain::{Call, Chain, PastCall};
use rules::measure::{Ending, Source, Tokens};
use serde_json::Value;

use super::write::{Out, Writer};
use super::*;

mod parts;

const NODE: &str = "n0de00000000";

fn spec(dir: &Path, generation: u64) -> AuditSpec {
    AuditSpec {
        dir: dir.to_path_buf(),
        node: NODE.to_owned(),
        generation,
        clock: clock::system(),
        fsync: Fsync::Interval,
        signer: signer(),
        checkpoint_every: CHECKPOINT_EVERY,
        rotate: Rotate::default(),
    }
}

fn signer() -> Arc<Signer> {
    Arc::new(Signer::from_seed(&[7; 32]).unwrap())
}

/// A writer of a new chain into one file.
fn writer<O: Out>(out: O, spec: &AuditSpec, healthy: &Arc<AtomicBool>) -> Writer<O> {
    let link = Link {
        seq: 0,
        head: Head::NONE,
    };
    let (tell, _heads) = watch::channel(None);
    let signing = sign::Signing::new("a-1".to_owned(), spec, tell);
    let never = Box::new(|_part| Err(io::Error::other("no further part")));
    let rotation = rotate::Rotation::new(spec.rotate, never);
    Writer::new(out, (link, 0), spec, (signing, rotation), healthy)
}

fn note(word: &str) -> Record {
    let mut record = blank(&clock::system(), "model-request");
    record.reason = Some(word.to_owned());
    record
}

fn silent(word: &str) -> Entry {
    Entry {
        record: note(word),
        done: Box::new(|_| ()),
    }
}

/// All lines, after having judged the chain.
fn judged(path: &Path) -> Vec<Value> {
    let bytes = fs::read(path).unwrap();
    assert!(bytes.ends_with(b"\n"));
    let mut head = Head::NONE;
    let mut values = Vec::new();
    for (number, line) in bytes
        .strip_suffix(b"\n")
        .unwrap()
        .split(|&b| b == b'\n')
        .enumerate()
    {
        let value: Value = serde_json::from_slice(line).unwrap();
        let chain: Chain = serde_json::from_value(value["guan.chain"].clone()).unwrap();
        assert_eq!(
            (chain.seq, Head::parse(&chain.prev).unwrap()),
            (number as u64, head)
        );
        head = Head::of(line);
        values.push(value);
    }
    values
}

fn words(values: &[Value]) -> Vec<&str> {
    values
        .iter()
        .map(|value| value["event.reason"].as_str().unwrap_or(""))
        .collect()
}

fn actions(values: &[Value]) -> Vec<&str> {
    values
        .iter()
        .map(|value| value["event.action"].as_str().unwrap())
        .collect()
}

/// A finished chain of this generation with these words; its file.
fn finished(dir: &Path, generation: u64, some: &[&str]) -> PathBuf {
    let (to, log) = open(spec(dir, generation)).unwrap();
    let path = log.path().to_path_buf();
    for word in some {
        to.blocking_send(silent(word)).unwrap();
    }
    drop(to);
    assert!(log.join());
    path
}

fn previous_of(path: &Path) -> Value {
    judged(path)[0]["guan.act"]["previous"].clone()
}

fn head_of(path: &Path) -> (u64, String) {
    let bytes = fs::read(path).unwrap();
    let last = bytes
        .strip_suffix(b"\n")
        .unwrap()
        .rsplit(|&b| b == b'\n')
        .next()
        .unwrap();
    let value: Value = serde_json::from_slice(last).unwrap();
    (
        value["guan.chain"]["seq"].as_u64().unwrap(),
        Head::of(last).to_string(),
    )
}

#[test]
fn every_record_is_in_the_file_in_order_before_it_counts_as_written() {
    let dir = tempfile::tempdir().unwrap();
    let (to, log) = open(spec(dir.path(), 1)).unwrap();
    let path = log.path().to_path_buf();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let missing = Arc::new(AtomicU64::new(0));
    let answered = Arc::new(Mutex::new(Vec::new()));
    for number in 0..3000_u64 {
        let (path, missing, answered) = (path.clone(), Arc::clone(&missing), Arc::clone(&answered));
        let entry = Entry {
            record: note(&format!("r{number}")),
            done: Box::new(move |ok| {
                answered.lock().unwrap().push(number);
                let there = number % 500 != 0
                    || fs::read_to_string(&path)
                        .unwrap()
                        .contains(&format!("\"r{number}\""));
                if !ok || !there {
                    let _before = missing.fetch_add(1, Ordering::SeqCst);
                }
            }),
        };
        to.blocking_send(entry).unwrap();
    }
    drop(to);
    let healthy = log.healthy();
    assert!(log.join());
    assert!(
        !healthy.load(Ordering::SeqCst),
        "a log that has ended takes nothing"
    );
    assert_eq!(missing.load(Ordering::SeqCst), 0);
    assert_eq!(*answered.lock().unwrap(), (0..3000).collect::<Vec<_>>());
    let values = judged(&path);
    assert_eq!(values.len(), 3002);
    assert_eq!(actions(&values)[0], "chain-start");
    assert_eq!(actions(&values)[3001], "chain-end");
    let wanted: Vec<String> = (0..3000).map(|number| format!("r{number}")).collect();
    assert_eq!(words(&values)[1..3001], wanted);
}

#[test]
fn each_chain_names_the_head_of_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let first = finished(dir.path(), 9, &["a"]);
    assert_eq!(previous_of(&first), Value::Null);
    // By number, not by name: 10 is after 9.
    let second = finished(dir.path(), 10, &["b"]);
    let third = finished(dir.path(), 11, &[]);
    for (older, newer, name) in [(&first, &second, "9"), (&second, &third, "10")] {
        let (seq, head) = head_of(older);
        let wanted = json!({ "chain": format!("{NODE}-{name}"), "seq": seq, "head": head });
        assert_eq!(previous_of(newer), wanted);
    }
    assert!(matches!(
        open(spec(dir.path(), 11)),
        Err(AuditFault::Used { .. })
    ));
    let nowhere = dir.path().join("none");
    assert!(matches!(
        open(spec(&nowhere, 1)),
        Err(AuditFault::File { .. })
    ));
}

#[test]
fn a_torn_end_is_set_aside_and_never_trusted() {
    let stranger = {
        let dir = tempfile::tempdir().unwrap();
        fs::read(finished(dir.path(), 1, &["foreign", "lines"])).unwrap()
    };
    let last_foreign = stranger
        .strip_suffix(b"\n")
        .unwrap()
        .rsplit(|&b| b == b'\n')
        .next()
        .unwrap();
    let whole_foreign = [last_foreign, b"\n"].concat();
    let cases: [&[u8]; 5] = [
        b"{\"guan.chain\":{\"se",
        b"\0\0\0\0\0\0\0\0",
        b"not json\n",
        &whole_foreign,
        b"not json\n{\"half",
    ];
    for torn in cases {
        let dir = tempfile::tempdir().unwrap();
        let path = finished(dir.path(), 1, &["a", "b"]);
        let (before, good) = (fs::read(&path).unwrap(), head_of(&path));
        fs::write(&path, [&before, torn].concat()).unwrap();
        let next = finished(dir.path(), 2, &[]);
        assert_eq!(fs::read(&path).unwrap(), before);
        let aside = dir.path().join(format!("{NODE}-1.jsonl.torn"));
        assert_eq!(fs::read(&aside).unwrap(), torn);
        assert_eq!(previous_of(&next)["head"], good.1);
        assert_eq!(previous_of(&next)["seq"], good.0);
    }
}

#[test]
fn a_second_tear_gets_a_file_of_its_own_and_a_chain_without_a_good_line_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = finished(dir.path(), 1, &["a"]);
    let before = fs::read(&path).unwrap();
    fs::write(dir.path().join(format!("{NODE}-1.jsonl.torn")), "earlier").unwrap();
    fs::write(&path, [&before, &b"torn"[..]].concat()).unwrap();
    let next = finished(dir.path(), 2, &[]);
    assert_eq!(previous_of(&next)["seq"], 2);
    let aside = dir.path().join(format!("{NODE}-1.jsonl.1.torn"));
    assert_eq!(fs::read(aside).unwrap(), b"torn");

    let garbage = dir.path().join(format!("{NODE}-3.jsonl"));
    fs::write(&garbage, "a\nb\nc").unwrap();
    fs::write(dir.path().join(format!("{NODE}-4.jsonl")), "").unwrap();
    fs::write(dir.path().join("something-5.txt"), "x").unwrap();
    let next = finished(dir.path(), 6, &[]);
    let wanted = json!({ "chain": format!("{NODE}-3"), "seq": null, "head": null });
    assert_eq!(previous_of(&next), wanted);
    assert_eq!(fs::read(&garbage).unwrap(), b"a\nb\nc");
}

#[test]
fn a_chain_that_still_grows_is_named_as_it_stands_and_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let (to, log) = open(spec(dir.path(), 1)).unwrap();
    let path = log.path().to_path_buf();
    let good = head_of(&path);
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"{\"in the middle of").unwrap();
    let length = fs::metadata(&path).unwrap().len();
    let next = finished(dir.path(), 2, &[]);
    assert_eq!(previous_of(&next)["head"], good.1);
    assert_eq!(fs::metadata(&path).unwrap().len(), length);
    drop(to);
    let _torn = log.join();
}

/// A real file on a disk that fills up.
struct Small {
    file: File,
    room: Arc<AtomicU64>,
    sync_works: Arc<AtomicBool>,
}

impl Out for Small {
    fn append(&self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.room.load(Ordering::SeqCst);
        if room == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let fits = usize::try_from(room).unwrap().min(bytes.len());
        let written = self.file.append(&bytes[..fits])?;
        self.room.store(room - written as u64, Ordering::SeqCst);
        Ok(written)
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.file.cut(length)
    }

    fn sync(&self) -> io::Result<()> {
        if self.sync_works.load(Ordering::SeqCst) {
            self.file.sync()
        } else {
            Err(io::Error::other("the disk is gone"))
        }
    }
}

struct Filling {
    dir: tempfile::TempDir,
    room: Arc<AtomicU64>,
    sync_works: Arc<AtomicBool>,
    healthy: Arc<AtomicBool>,
    to: Sender<Entry>,
    writing: tokio::task::JoinHandle<bool>,
}

impl Filling {
    fn start(fsync: Fsync) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chain.jsonl");
        let (room, sync_works) = (
            Arc::new(AtomicU64::new(u64::MAX)),
            Arc::new(AtomicBool::new(true)),
        );
        let out = Small {
            file: begin(&path).unwrap(),
            room: Arc::clone(&room),
            sync_works: Arc::clone(&sync_works),
        };
        let healthy = Arc::new(AtomicBool::new(true));
        let spec = AuditSpec {
            fsync,
            ..spec(dir.path(), 1)
        };
        let writer = writer(out, &spec, &healthy);
        let (to, from) = mpsc::channel(64);
        Self {
            dir,
            room,
            sync_works,
            healthy,
            to,
            writing: tokio::spawn(writer.drain(from)),
        }
    }

    async fn write(&self, word: &str) -> bool {
        record(&self.to, note(word)).await.is_ok()
    }

    /// Lets the clock run, not the test, until the log is as wanted.
    async fn until(&self, healthy: bool) {
        for _ in 0..100_000 {
            if self.healthy.load(Ordering::SeqCst) == healthy {
                return;
            }
            tokio::time::advance(Duration::from_millis(50)).await;
            // Waiting for the disk is a thread's work: it needs a turn, too.
            tokio::task::spawn_blocking(std::thread::yield_now)
                .await
                .unwrap();
        }
        panic!("the log never became healthy = {healthy}");
    }

    async fn end(self) -> (bool, Vec<Value>) {
        drop(self.to);
        let closed = self.writing.await.unwrap();
        (closed, judged(&self.dir.path().join("chain.jsonl")))
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_and_room_brings_the_log_back_by_itself() {
    let log = Filling::start(Fsync::Interval);
    assert!(log.write("a").await);
    // Room for a part of a line: it must not stay.
    log.room.store(100, Ordering::SeqCst);
    assert!(!log.write("b").await);
    assert!(!log.healthy.load(Ordering::SeqCst));
    assert_eq!(judged(&log.dir.path().join("chain.jsonl")).len(), 1);
    assert!(!log.write("c").await);
    log.room.store(u64::MAX, Ordering::SeqCst);
    log.until(true).await;
    assert!(log.write("d").await);
    let (closed, values) = log.end().await;
    assert!(closed);
    assert_eq!(words(&values), ["a", "", "d", ""]);
    assert_eq!(actions(&values)[1], "log-resumed");
    assert_eq!(values[1]["guan.act"]["refused"], 2);
    assert_eq!(values[3]["guan.act"]["refused"], 0);
}

#[tokio::test(start_paused = true)]
async fn the_first_record_that_fits_again_is_written_behind_the_gap() {
    let log = Filling::start(Fsync::Interval);
    log.room.store(0, Ordering::SeqCst);
    assert!(!log.write("a").await);
    log.room.store(u64::MAX, Ordering::SeqCst);
    assert!(log.write("b").await);
    let (closed, values) = log.end().await;
    assert!(closed);
    assert_eq!(
        actions(&values),
        ["log-resumed", "model-request", "chain-end"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_never_takes_the_lines_makes_the_log_unhealthy_until_it_does() {
    let log = Filling::start(Fsync::Interval);
    log.sync_works.store(false, Ordering::SeqCst);
    assert!(log.write("a").await, "the kernel has it");
    log.until(false).await;
    log.sync_works.store(true, Ordering::SeqCst);
    log.until(true).await;
    assert!(log.write("b").await);
    assert!(log.end().await.0);

    let log = Filling::start(Fsync::Each);
    log.sync_works.store(false, Ordering::SeqCst);
    assert!(!log.write("a").await, "each: not before the disk has it");
    assert!(!log.healthy.load(Ordering::SeqCst));
    log.sync_works.store(true, Ordering::SeqCst);
    assert!(log.write("b").await);
    assert!(log.healthy.load(Ordering::SeqCst));
}

#[tokio::test]
async fn dev_full_refuses_and_ends_without_a_panic() {
    let healthy = Arc::new(AtomicBool::new(true));
    let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let writer = writer(full, &spec(dir.path(), 1), &healthy);
    let (to, from) = mpsc::channel(4);
    let thread = std::thread::spawn(move || writer.run(from));
    assert_eq!(record(&to, note("a")).await, Err(AuditFault::Unwritten));
    assert!(!healthy.load(Ordering::SeqCst));
    drop(to);
    assert!(!thread.join().unwrap());
}

fn call(key: &str, ended_ns: i128, taken_ns: u64) -> Record {
    let mut record = blank(&clock::fixed(ended_ns), "model-request");
    record.user_id = Some(key.to_owned());
    record.role = Some("user".to_owned());
    record.call = Some(Call {
        project: Some("p".to_owned()),
        model: None,
        ending: Ending::Finished,
        stream: false,
        charged: Tokens::default(),
        source: Source::Nothing,
        reserved: Tokens::default(),
        taken_ns: Some(taken_ns),
        replica: None,
        attempts: 0,
        first_byte_ns: None,
        request_bytes: 0,
        dropped: Vec::new(),
    });
    record
}

#[test]
fn calls_of_the_last_minute_are_found_in_all_files_and_torn_lines_passed_over() {
    const SECOND: u64 = 1_000_000_000;
    let dir = tempfile::tempdir().unwrap();
    let now = 1_800_000_000 * SECOND;
    let mut link = Link {
        seq: 0,
        head: Head::NONE,
    };
    let mut lines = Vec::new();
    // Long ago: many, so that reading from the end pays; then the recent ones, one of which began long before.
    for number in 0..2000 {
        let at = now - 10_000 * SECOND + number * SECOND;
        link.append(&call("old", i128::from(at), at), &mut lines)
            .unwrap();
    }
    for (key, ended, taken) in [("b", 50, 55), ("slow", 40, 500), ("a", 30, 30)] {
        let record = call(key, i128::from(now - ended * SECOND), now - taken * SECOND);
        link.append(&record, &mut lines).unwrap();
    }
    link.append(&note("no call"), &mut lines).unwrap();
    lines.extend_from_slice(b"{\"@timestamp\":\"2027");
    fs::write(dir.path().join("n-1.jsonl"), &lines).unwrap();

    let mut newer = b"garbage\n\xff\xfe\n".to_vec();
    link.append(&call("c", i128::from(now), now - SECOND), &mut newer)
        .unwrap();
    fs::write(dir.path().join("n-2.jsonl"), &newer).unwrap();
    fs::write(dir.path().join("n-2.jsonl.torn"), &newer).unwrap();

    for name in ["n-1.jsonl", "n-2.jsonl"] {
        let file = File::options()
            .write(true)
            .open(dir.path().join(name))
            .unwrap();
        let written = std::time::UNIX_EPOCH + Duration::from_nanos(now);
        file.set_modified(written).unwrap();
    }
    let found = past_calls(dir.path(), now - 60 * SECOND);
    let made = call("any", 0, 0).call.unwrap();
    let wanted = [("b", 55), ("a", 30), ("c", 1)].map(|(key, ago)| PastCall {
        key: key.to_owned(),
        role: Some("user".to_owned()),
        project: made.project.clone(),
        model: made.model.clone(),
        taken_ns: now - ago * SECOND,
        charged: made.charged,
        cut: None,
    });
    assert_eq!(found, wanted);
    assert!(past_calls(&dir.path().join("none"), 0).is_empty());
    // A file that nobody wrote since isn't read.
    let unread = dir.path().join("n-3.jsonl");
    fs::copy(dir.path().join("n-2.jsonl"), &unread).unwrap();
    let file = File::options().write(true).open(&unread).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + Duration::from_nanos(now - 70 * SECOND))
        .unwrap();
    assert_eq!(past_calls(dir.path(), now - 60 * SECOND), wanted);
}
