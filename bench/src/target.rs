//! What is under test: Guan with everything on, nginx as a bare TLS proxy, and the model server itself.

use std::fs;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs as provider;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tempfile::TempDir;
use testkit::server::Guan;

use crate::Fault;
use crate::client::Door;
use crate::usage;
use crate::workload::{WORKLOADS, Workload};

/// Keys in the store beside the one that is used.
const OTHER_KEYS: usize = 9_999;
/// Until nginx listens.
const PATIENCE: Duration = Duration::from_secs(20);

/// Something that answers.
pub(crate) struct Target {
    /// Its name in the tables.
    pub(crate) name: &'static str,
    address: SocketAddr,
    authorities: Option<RootCertStore>,
    key: String,
    /// A request's path begins with the workload's name: nobody here knows models.
    by_path: bool,
    /// Its processes, oldest first.
    pub(crate) processes: Vec<u32>,
    _running: Running,
}

/// Ends with the target.
enum Running {
    Guan { _guan: Box<Guan> },
    Nginx { _nginx: Nginx },
    Nothing,
}

impl Target {
    /// The model server itself.
    pub(crate) fn direct(upstream: SocketAddr) -> Self {
        Self {
            name: "direct",
            address: upstream,
            authorities: None,
            key: "none".to_owned(),
            by_path: true,
            processes: Vec::new(),
            _running: Running::Nothing,
        }
    }

    /// Guan, with a store of 10,000 keys.
    pub(crate) fn guan(binary: &Path, upstream: SocketAddr) -> Result<Self, Fault> {
        let mut config =
            "[server]\nlisten = \"127.0.0.1:0\"\n\n[admin]\nlisten = \"127.0.0.1:0\"\n\n\
             [roles.bench]\nmodels = [\"*\"]\nrequests_per_minute = 1000000\n\
             max_output_tokens = 4096\nconcurrent_requests = 100000\n"
                .to_owned();
        for workload in &WORKLOADS {
            config += &format!(
                "\n[[models]]\nname = \"{0}\"\n[[models.replicas]]\nurl = \"http://{upstream}/{0}\"\n",
                workload.name
            );
        }
        let guan = Guan::start(binary, &config);
        let list = guan.data().join("others");
        let mut others = fs::File::create(&list)?;
        for number in 0..OTHER_KEYS {
            writeln!(others, "sk-other-{number:032}")?;
        }
        let file = list.to_string_lossy();
        let made = guan.run(&[
            "key", "import", "--plain", &file, "--role", "bench", "--json",
        ]);
        if !made.status.success() {
            return Err(String::from_utf8_lossy(&made.stderr).into());
        }
        let client = guan.client();
        Ok(Self {
            name: "guan",
            address: client.address(),
            authorities: Some(authorities(&guan.data().join("secrets/tls.crt"))?),
            key: guan.key("bench"),
            by_path: false,
            processes: usage::tree(guan.pid()),
            _running: Running::Guan {
                _guan: Box::new(guan),
            },
        })
    }

    /// nginx, tuned as a proxy of streams is.
    pub(crate) fn nginx(binary: &Path, upstream: SocketAddr) -> Result<Self, Fault> {
        let folder = TempDir::new()?;
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        let certificate = folder.path().join("tls.crt");
        fs::write(&certificate, made.cert.pem())?;
        fs::write(
            folder.path().join("tls.key"),
            made.signing_key.serialize_pem(),
        )?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let file = folder.path().join("nginx.conf");
        fs::write(&file, nginx_conf(folder.path(), address, upstream))?;
        #[expect(
            clippy::disallowed_methods,
            reason = "a bench starts the peer it compares with"
        )]
        let mut command = Command::new(binary);
        let process = command
            .arg("-e")
            .arg(folder.path().join("error.log"))
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let nginx = Nginx {
            process,
            _folder: folder,
        };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            if Instant::now() > deadline {
                return Err("nginx doesn't listen".into());
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        Ok(Self {
            name: "nginx",
            address,
            authorities: Some(authorities(&certificate)?),
            key: "none".to_owned(),
            by_path: true,
            processes: usage::tree(nginx.process.id()),
            _running: Running::Nginx { _nginx: nginx },
        })
    }

    /// Where its clients connect, and how.
    pub(crate) fn door(&self, workload: &Workload, epoch: Instant) -> Result<Door, Fault> {
        let tls = match &self.authorities {
            None => None,
            Some(roots) => Some(Arc::new(client_config(roots.clone(), workload.hybrid)?)),
        };
        Ok(Door {
            address: self.address,
            tls,
            epoch,
        })
    }

    /// A workload's request.
    pub(crate) fn request(&self, workload: &Workload) -> String {
        let body = workload.body();
        let path = if self.by_path {
            format!("/{}", workload.name)
        } else {
            String::new()
        };
        format!(
            "POST {path}/v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nuser-agent: OpenAI/Python 2.8.0\r\n\
             accept: application/json\r\naccept-encoding: gzip, deflate\r\nconnection: keep-alive\r\n\
             content-type: application/json\r\nauthorization: Bearer {}\r\nx-stainless-lang: python\r\n\
             x-stainless-os: Linux\r\nx-stainless-arch: x64\r\ncontent-length: {}\r\n\r\n{body}",
            self.key,
            body.len(),
        )
    }
}

fn authorities(pem: &Path) -> Result<RootCertStore, Fault> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(pem)? {
        roots.add(certificate?)?;
    }
    Ok(roots)
}

/// TLS 1.3 without resumption: each handshake is a whole one.
fn client_config(roots: RootCertStore, hybrid: bool) -> Result<ClientConfig, Fault> {
    let mut crypto = provider::default_provider();
    if !hybrid {
        crypto.kx_groups = vec![provider::kx_group::X25519];
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(crypto))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(config)
}

struct Nginx {
    process: Child,
    _folder: TempDir,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // SIGTERM: its workers end with it.
        Guan::signal(self.process.id(), "TERM");
        self.process.wait().ok();
    }
}

/// A worker a core, keep-alive on both sides, nothing logged, streams passed on at once, bodies kept in memory.
fn nginx_conf(folder: &Path, address: SocketAddr, upstream: SocketAddr) -> String {
    let folder = folder.display();
    let user = if rustix::process::getuid().is_root() {
        "user root;\n"
    } else {
        ""
    };
    format!(
        "{user}daemon off;\npid {folder}/pid;\nworker_processes auto;\nworker_rlimit_nofile 20000;\n\
         events {{ worker_connections 16000; }}\n\
         http {{\n\
           access_log off;\n\
           client_body_temp_path {folder}/body;\n  proxy_temp_path {folder}/proxy;\n\
           fastcgi_temp_path {folder}/fastcgi;\n  uwsgi_temp_path {folder}/uwsgi;\n  scgi_temp_path {folder}/scgi;\n\
           keepalive_requests 1000000;\n\
           client_max_body_size 16m;\n  client_body_buffer_size 512k;\n\
           upstream model {{ server {upstream}; keepalive 64; keepalive_requests 1000000; }}\n\
           server {{\n\
             listen {address} ssl reuseport;\n\
             ssl_certificate {folder}/tls.crt;\n    ssl_certificate_key {folder}/tls.key;\n\
             ssl_protocols TLSv1.2 TLSv1.3;\n\
             location / {{\n\
               proxy_pass http://model;\n      proxy_http_version 1.1;\n      proxy_set_header Connection \"\";\n\
               proxy_buffering off;\n      proxy_read_timeout 300s;\n\
             }}\n\
           }}\n\
         }}\n"
    )
}

/// Lets this process and its children open as many files as the system allows: a live stream takes four here.
pub(crate) fn raise_files() -> io::Result<()> {
    let files = rustix::process::Resource::Nofile;
    let now = rustix::process::getrlimit(files);
    let most = rustix::process::Rlimit {
        current: now.maximum,
        maximum: now.maximum,
    };
    Ok(rustix::process::setrlimit(files, most)?)
}
