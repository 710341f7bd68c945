//! A web server that misbehaves on purpose, on 127.0.0.1 and a port that the system picks: cuts, stalls, lies about
//! lengths, changes its mind. Decides nothing itself: the test's closure answers. Called by `model_pull`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// One request as it came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    pub(crate) path: String,
    /// First byte wanted, from `Range: bytes=N-`.
    pub(crate) from: Option<usize>,
    pub(crate) if_range: Option<String>,
    pub(crate) authorization: Option<String>,
    /// How many requests for this path came before.
    pub(crate) nth: usize,
}

/// What is sent back.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    length: Option<usize>,
    chunked: bool,
    end: End,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Whole,
    Cut(usize),
    Stall(usize),
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let length = Some(body.len());
        Self {
            status,
            headers: Vec::new(),
            body,
            length,
            chunked: false,
            end: End::Whole,
        }
    }

    pub(crate) fn redirect(to: impl Into<String>) -> Self {
        Self::new(302, "").header("location", to)
    }

    /// A well-behaved server of `body`: 206 for a range whose `If-Range` fits, else 200.
    pub(crate) fn ranged(asked: &Asked, body: &[u8], etag: &str) -> Self {
        let fits = asked.if_range.as_deref().is_none_or(|tag| tag == etag);
        match asked.from.filter(|_| fits) {
            Some(from) if from >= body.len() => Self::new(416, ""),
            Some(from) => Self::new(206, &body[from..]).header(
                "content-range",
                format!("bytes {from}-{}/{}", body.len() - 1, body.len()),
            ),
            None => Self::new(200, body),
        }
        .header("etag", etag)
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// The line is cut after `bytes` of the body.
    pub(crate) fn cut(mut self, bytes: usize) -> Self {
        self.end = End::Cut(bytes);
        self
    }

    /// Nothing more comes after `bytes` of the body, and the line stays.
    pub(crate) fn stall(mut self, bytes: usize) -> Self {
        self.end = End::Stall(bytes);
        self
    }

    /// The body in chunks, its length not said.
    pub(crate) fn chunked(mut self) -> Self {
        self.chunked = true;
        self
    }

    /// No word on the length at all; the end is where the line ends.
    pub(crate) fn lengthless(mut self) -> Self {
        self.length = None;
        self
    }
}

/// Runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    at: SocketAddr,
    seen: Arc<Mutex<Vec<(Asked, usize)>>>,
    over: Arc<AtomicBool>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let over = Arc::new(AtomicBool::new(false));
        let (log, stop, answer) = (Arc::clone(&seen), Arc::clone(&over), Arc::new(answer));
        std::thread::spawn(move || {
            for line in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                std::thread::spawn(move || serve(line.unwrap(), &log, answer.as_ref()));
            }
        });
        Self { at, seen, over }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.at)
    }

    /// `HOST:PORT`.
    pub(crate) fn authority(&self) -> String {
        self.at.to_string()
    }

    /// All requests so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .map(|(asked, _)| asked.clone())
            .collect()
    }

    /// Bytes of bodies sent so far for `path`.
    pub(crate) fn sent(&self, path: &str) -> usize {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .filter(|(a, _)| a.path == path)
            .map(|(_, n)| n)
            .sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        TcpStream::connect(self.at).ok();
    }
}

fn serve(
    mut line: TcpStream,
    log: &Mutex<Vec<(Asked, usize)>>,
    answer: &(dyn Fn(&Asked) -> Reply + Send + Sync),
) {
    let Some(mut asked) = read_request(&line) else {
        return;
    };
    let index = {
        let mut log = log.lock().unwrap();
        asked.nth = log.iter().filter(|(a, _)| a.path == asked.path).count();
        log.push((asked.clone(), 0));
        log.len() - 1
    };
    let reply = answer(&asked);
    let kept = match reply.end {
        End::Whole => reply.body.len(),
        End::Cut(n) | End::Stall(n) => n.min(reply.body.len()),
    };
    // counted before it is sent: the client may be done before this thread goes on
    log.lock().unwrap()[index].1 = kept;
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    match reply.length {
        _ if reply.chunked => head += "transfer-encoding: chunked\r\n",
        Some(length) => head += &format!("content-length: {length}\r\n"),
        None => {}
    }
    head += "\r\n";
    let body = &reply.body[..kept];
    let sent = line.write_all(head.as_bytes()).and_then(|()| {
        if !reply.chunked {
            return line.write_all(body);
        }
        for chunk in body.chunks(1000) {
            write!(line, "{:x}\r\n", chunk.len())?;
            line.write_all(chunk)?;
            line.write_all(b"\r\n")?;
        }
        line.write_all(b"0\r\n\r\n")
    });
    if sent.is_ok() && matches!(reply.end, End::Stall(_)) {
        // until the other side has had enough
        std::io::copy(&mut line, &mut std::io::sink()).ok();
    }
}

fn read_request(line: &TcpStream) -> Option<Asked> {
    let mut lines = BufReader::new(line).lines();
    let first = lines.next()?.ok()?;
    let mut asked = Asked {
        path: first.split(' ').nth(1)?.to_owned(),
        ..Asked::default()
    };
    for header in lines {
        let header = header.ok()?;
        let Some((name, value)) = header.split_once(':') else {
            break;
        };
        let value = value.trim().to_owned();
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                asked.from = value
                    .strip_prefix("bytes=")?
                    .strip_suffix('-')?
                    .parse()
                    .ok();
            }
            "if-range" => asked.if_range = Some(value),
            "authorization" => asked.authorization = Some(value),
            _ => {}
        }
    }
    Some(asked)
}
