//! A model server that lies, stalls, cuts and dribbles on command: one closure answers each request, byte for byte.
//!
//! Listens on a free port of 127.0.0.1; remembers what it received. Used by the tests of `guan` only.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long any wait in a test may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Received {
    /// Request line and headers, as written.
    pub head: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Received {
    /// The body as JSON.
    ///
    /// # Panics
    /// When it isn't.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("the upstream received JSON")
    }

    /// The values of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Vec<String> {
        self.head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_owned())
            .collect()
    }
}

/// One answer, written by hand.
#[derive(Debug)]
pub struct Answer<'a> {
    stream: &'a mut TcpStream,
    gone: &'a Mark,
}

impl Answer<'_> {
    /// Writes bytes in one TCP write. A client that left is no fault here.
    pub fn write(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Waits as the script says: 50 ms between two writes, so that they arrive apart.
    pub fn pause(&mut self) {
        self.wait(Duration::from_millis(50));
    }

    /// Waits so long, or until the client leaves.
    pub fn wait(&mut self, time: Duration) -> bool {
        self.stream
            .set_read_timeout(Some(time))
            .expect("a timeout can be set");
        let mut byte = [0];
        matches!(self.stream.read(&mut byte), Ok(0))
            || matches!(self.stream.read(&mut byte), Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset)
    }

    /// Waits until the client has left, and remembers it.
    pub fn wait_gone(&mut self) -> bool {
        let gone = self.wait(PATIENCE);
        if gone {
            self.gone.set();
        }
        gone
    }

    /// A whole JSON answer.
    pub fn json(&mut self, status: u16, body: &str) {
        self.write(format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
    }

    /// The head of a chunked event stream.
    pub fn sse(&mut self) {
        self.write(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
        );
    }

    /// One chunk of it.
    pub fn chunk(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let bytes = bytes.as_ref();
        let mut out = format!("{:x}\r\n", bytes.len()).into_bytes();
        out.extend_from_slice(bytes);
        out.extend_from_slice(b"\r\n");
        self.write(out)
    }

    /// One `data:` event as a chunk.
    pub fn event(&mut self, data: &str) -> bool {
        self.chunk(format!("data: {data}\n\n"))
    }

    /// The end of the chunks.
    pub fn end(&mut self) {
        self.write("0\r\n\r\n");
    }

    /// Cuts the connection, whatever was announced.
    pub fn cut(&mut self) {
        self.stream.shutdown(Shutdown::Both).ok();
    }
}

/// Something that happens once and can be awaited.
#[derive(Debug, Default)]
pub struct Mark {
    count: Mutex<u32>,
    changed: Condvar,
}

impl Mark {
    /// It happened.
    pub fn set(&self) {
        *self.count.lock().expect("no test panics here") += 1;
        self.changed.notify_all();
    }

    /// Waits until it happened `times` times; `false` when patience ends.
    pub fn wait(&self, times: u32) -> bool {
        let count = self.count.lock().expect("no test panics here");
        let waited = self
            .changed
            .wait_timeout_while(count, PATIENCE, |count| *count < times);
        waited.is_ok_and(|(_, timeout)| !timeout.timed_out())
    }
}

type Script = dyn Fn(&Received, &mut Answer<'_>) + Send + Sync;

/// The server.
pub struct Upstream {
    port: u16,
    received: Arc<(Mutex<Vec<Received>>, Condvar)>,
    gone: Arc<Mark>,
    stop: Arc<std::sync::atomic::AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Upstream({})", self.port)
    }
}

impl Upstream {
    /// Starts one whose answers `script` writes.
    ///
    /// # Panics
    /// When no port can be had.
    pub fn start(script: impl Fn(&Received, &mut Answer<'_>) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let received = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let gone = Arc::new(Mark::default());
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let script: Arc<Script> = Arc::new(script);
        let thread = {
            let (received, gone, stop) =
                (Arc::clone(&received), Arc::clone(&gone), Arc::clone(&stop));
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    if stop.load(std::sync::atomic::Ordering::SeqCst) {
                        return;
                    }
                    let Ok(stream) = stream else { continue };
                    let (script, received, gone) = (
                        Arc::clone(&script),
                        Arc::clone(&received),
                        Arc::clone(&gone),
                    );
                    std::thread::spawn(move || serve(stream, &*script, &received, &gone));
                }
            })
        };
        Self {
            port,
            received,
            gone,
            stop,
            thread: Some(thread),
        }
    }

    /// Its base URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// All requests so far.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.received.0.lock().expect("no test panics here").clone()
    }

    /// Waits until so many requests have come.
    ///
    /// # Panics
    /// When they don't.
    pub fn wait_received(&self, count: usize) {
        let (list, changed) = &*self.received;
        let list = list.lock().expect("no test panics here");
        let (_list, timeout) = changed
            .wait_timeout_while(list, PATIENCE, |list| list.len() < count)
            .expect("no test panics here");
        assert!(
            !timeout.timed_out(),
            "the upstream received fewer than {count} requests"
        );
    }

    /// Set each time an answer's `wait_gone` saw the client leave.
    #[must_use]
    pub fn gone(&self) -> &Mark {
        &self.gone
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::SeqCst);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn serve(
    mut stream: TcpStream,
    script: &Script,
    received: &(Mutex<Vec<Received>>, Condvar),
    gone: &Mark,
) {
    stream.set_nodelay(true).ok();
    let mut held = Vec::new();
    loop {
        stream.set_read_timeout(None).ok();
        let Some(request) = read_request(&mut stream, &mut held) else {
            return;
        };
        received
            .0
            .lock()
            .expect("no test panics here")
            .push(request.clone());
        received.1.notify_all();
        script(
            &request,
            &mut Answer {
                stream: &mut stream,
                gone,
            },
        );
    }
}

fn read_request(stream: &mut TcpStream, held: &mut Vec<u8>) -> Option<Received> {
    let mut scratch = [0; 16 << 10];
    let split = loop {
        if let Some(at) = held.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        let n = stream.read(&mut scratch).ok().filter(|&n| n > 0)?;
        held.extend_from_slice(&scratch[..n]);
    };
    let head = String::from_utf8_lossy(&held[..split]).into_owned();
    let mut request = Received {
        head,
        body: Vec::new(),
    };
    let length = request
        .header("content-length")
        .first()
        .map_or(0, |n| n.parse().unwrap_or(0));
    held.drain(..split);
    let deadline = Instant::now() + PATIENCE;
    while held.len() < length && Instant::now() < deadline {
        let n = stream.read(&mut scratch).ok().filter(|&n| n > 0)?;
        held.extend_from_slice(&scratch[..n]);
    }
    request.body = held.drain(..length).collect();
    Some(request)
}
